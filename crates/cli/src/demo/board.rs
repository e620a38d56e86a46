//! The sink of the demo's last queries: their rows go onto the board that the screen shows.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef};
use caudal_engine::error::EngineError;
use caudal_engine::sink::{OutputMode, Sink};
use parking_lot::Mutex;

use super::view::Figures;

/// Which figures a query delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Players,
    Teams,
}

/// Writes changed rows onto the board. The same row again changes nothing, so a batch may be run twice.
#[derive(Debug)]
pub struct Board {
    pub part: Part,
    /// Rows of other matches are passed over, where they say which they belong to.
    pub match_id: String,
    pub figures: Arc<Mutex<Figures>>,
}

fn column(batch: &RecordBatch, name: &str, kind: &DataType) -> Result<arrow::array::ArrayRef, EngineError> {
    let found = batch.column_by_name(name).ok_or_else(|| EngineError::External {
        action: "show the figures".into(),
        message: format!("the pipeline's last query has no column '{name}'"),
    })?;
    Ok(cast(found, kind)?)
}

impl Board {
    fn take(&self, batch: &RecordBatch) -> Result<(), EngineError> {
        let text = |name: &str| column(batch, name, &DataType::Utf8);
        let float = |name: &str| column(batch, name, &DataType::Float64);
        let int = |name: &str| column(batch, name, &DataType::Int64);
        let mut figures = self.figures.lock();
        match self.part {
            Part::Players => {
                let matches = text("match_id")?;
                let (names, meters, speed) = (text("player_id")?, float("meters")?, float("speed")?);
                let (top, sprints, seconds) = (float("top_speed")?, int("sprints")?, int("seconds")?);
                for row in 0..batch.num_rows() {
                    if names.is_null(row) || matches.as_string::<i32>().value(row) != self.match_id {
                        continue;
                    }
                    let player = figures.players.entry(names.as_string::<i32>().value(row).to_owned()).or_default();
                    player.meters = meters.as_primitive::<Float64Type>().value(row);
                    player.speed = speed.as_primitive::<Float64Type>().value(row);
                    player.top_speed = top.as_primitive::<Float64Type>().value(row);
                    player.sprints = sprints.as_primitive::<Int64Type>().value(row);
                    player.seconds = seconds.as_primitive::<Int64Type>().value(row);
                }
            }
            Part::Teams => {
                let names = text("team")?;
                let (passes, shots, goals) = (int("passes")?, int("shots")?, int("goals")?);
                let (recoveries, events) = (int("recoveries")?, int("events")?);
                for row in 0..batch.num_rows() {
                    let team = figures.teams.entry(names.as_string::<i32>().value(row).to_owned()).or_default();
                    team.passes = passes.as_primitive::<Int64Type>().value(row);
                    team.shots = shots.as_primitive::<Int64Type>().value(row);
                    team.goals = goals.as_primitive::<Int64Type>().value(row);
                    team.recoveries = recoveries.as_primitive::<Int64Type>().value(row);
                    team.events = events.as_primitive::<Int64Type>().value(row);
                }
            }
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Sink for Board {
    fn description(&self) -> String {
        "Board".into()
    }

    fn check_mode(&self, _mode: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn add_batch(
        &mut self,
        _batch_id: i64,
        _mode: OutputMode,
        _schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        let mut rows = 0;
        for batch in &batches {
            rows += batch.num_rows() as u64;
            self.take(batch)?;
        }
        Ok(rows)
    }
}
