//! Runs a match: starts the broker, starts the queries, sends the samples at their pace, shows the figures.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_client::{Delivery, Producer, Record};
use caudal_engine::sql::{SessionConfig, SqlSession, StatementResult};
use caudal_engine::{query::StreamingQuery, sink::OutputMode};
use parking_lot::Mutex;

use super::board::{Board, Part};
use super::feed::{Sample, merge};
use super::simulator::Simulator;
use super::stage::{EVENTS_TOPIC, POSITIONS_TOPIC, SECONDS_TOPIC, Stage};
use super::view::{self, Figures, Screen, thousands};
use super::{Football, Output, files, text};
use crate::tools::interrupted;

const PIPELINE: &str = include_str!("../../../../examples/football/pipeline.sql");
const EVENTS: &str = include_str!("../../../../examples/football/events.sql");
/// The match is sent in strides of this much match time, each acknowledged before the next: so the partitions of the
/// topic never drift apart by more, and no sample is late for its window.
const STRIDE_MS: i64 = 1000;
/// A pause in the tracking is not waited out longer than this, in match time.
const PAUSE_MAX_MS: i64 = 5000;
/// The clock of the last message, after the end: beyond every window and the watermark's delay.
const AFTER_WHISTLE_MS: i64 = 20_000;
const FRAME: Duration = Duration::from_millis(100);

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Ctrl-C, before the whistle.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; the match so far is kept in {kept}")]
pub struct Interrupted {
    kept: String,
}

/// Plays a match to its end.
pub fn play(options: &Football) -> Result<(), Failure> {
    let samples = samples(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(options, samples))
}

fn samples(options: &Football) -> Result<Vec<Sample>, Failure> {
    let positions = match &options.tracking {
        Some(path) => files::tracking(path)?,
        None => Simulator::new(options.seed, options.minutes * 60).collect(),
    };
    let events = match &options.events {
        Some(path) => files::events(path)?,
        None => Vec::new(),
    };
    Ok(merge(positions, events))
}

/// Everything that is alive during a match.
struct Match {
    id: String,
    dir: PathBuf,
    kickoff_ms: i64,
    stage: Stage,
    figures: Arc<Mutex<Figures>>,
}

async fn run(options: &Football, samples: Vec<Sample>) -> Result<(), Failure> {
    let now = chrono::Utc::now();
    let id = now.format("match-%Y%m%d-%H%M%S-%3f").to_string();
    let dir = options.data_dir.join(&id);
    let create_dir = || std::fs::create_dir_all(&dir).map_err(|e| format!("failed to create {}: {e}", dir.display()));
    if options.server.is_none() {
        create_dir()?;
    }
    let length_ms = samples.last().map_or(0, |s| s.at_ms);
    let figures = Figures { length_ms, ..Figures::default() };
    let mut screen = (options.output == Output::Table).then(Screen::new);
    if let Some(screen) = &mut screen {
        screen.show(&figures)?;
    }
    let stage = Stage::open(options.server.as_deref(), &dir.join("broker")).await?;
    if !options.send_only {
        create_dir()?;
    }
    if stage.earlier_records() > 0 && options.output == Output::Table && !options.send_only {
        let (server, count) = (&stage.address, stage.earlier_records());
        let told =
            format!("The topics on {server} hold {count} records of earlier matches; this one begins behind them.");
        eprint!("{}", text::prose("", &told, text::columns()));
    }
    let this = Match {
        id,
        dir,
        // The match ends now: records from the future are refused. On a full second, so that the seconds of the match are
        // those of the clock.
        kickoff_ms: (now.timestamp() - length_ms / 1000 - AFTER_WHISTLE_MS / 1000 - 1) * 1000,
        stage,
        figures: Arc::new(Mutex::new(figures)),
    };
    let queries = if options.send_only { Vec::new() } else { this.start_queries(options.events.is_some()).await? };
    let outcome = this.watch(options, &samples, &queries, screen.as_mut()).await;
    for query in queries.iter().rev() {
        query.stop().await;
    }
    if !options.send_only {
        this.count_consumed(&queries);
    }
    if let Some(screen) = screen.as_mut() {
        screen.finish(&this.figures.lock())?;
    }
    let told = outcome.is_ok().then(|| {
        let mut out = io::stdout().lock();
        match options.output {
            Output::Table => write!(out, "{}", this.summarize(options, text::columns())),
            Output::Json => writeln!(out, "{}", this.to_json(options)),
        }
    });
    this.stage.close().await;
    outcome.and(told.unwrap_or(Ok(())).map_err(Failure::from))
}

impl Match {
    async fn start_queries(&self, with_events: bool) -> Result<Vec<StreamingQuery>, Failure> {
        let mut conf = std::collections::BTreeMap::new();
        conf.insert("bootstrap".to_owned(), self.stage.address.clone());
        let session = SqlSession::new(SessionConfig { conf, warehouse: self.warehouse() })?;
        let mut queries = self.run_script(&session, PIPELINE, Part::Players).await?;
        if with_events {
            queries.extend(self.run_script(&session, EVENTS, Part::Teams).await?);
        }
        Ok(queries)
    }

    /// Runs a script; rows of its streaming SELECT go onto the board.
    async fn run_script(&self, session: &SqlSession, script: &str, part: Part) -> Result<Vec<StreamingQuery>, Failure> {
        let mut queries = Vec::new();
        for statement in session.parse(&self.stage.script(script))? {
            match session.execute(&statement).await? {
                StatementResult::Streaming(query) => queries.push(query),
                StatementResult::StreamingSelect(select) => {
                    let board = Box::new(Board { part, match_id: self.id.clone(), figures: self.figures.clone() });
                    queries.push(session.start(&select, board, OutputMode::Update, None, None).await?);
                }
                StatementResult::Rows { .. } | StatementResult::Done(_) => {}
            }
        }
        Ok(queries)
    }

    fn warehouse(&self) -> PathBuf {
        self.dir.join("tables")
    }

    /// Sends the match and redraws until all of it has come through.
    async fn watch(
        &self,
        options: &Football,
        samples: &[Sample],
        queries: &[StreamingQuery],
        mut screen: Option<&mut Screen>,
    ) -> Result<(), Failure> {
        let whole = async {
            self.send(options.speed, samples).await?;
            // In the order in which they feed each other.
            for query in queries {
                query.process_all_available().await.map_err(|e| e.to_string())?;
            }
            for query in queries {
                query.process_all_available().await.map_err(|e| e.to_string())?;
            }
            Ok::<(), Failure>(())
        };
        tokio::pin!(whole);
        let interrupted = interrupted();
        tokio::pin!(interrupted);
        let mut frames = tokio::time::interval(FRAME);
        frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                done = &mut whole => return done,
                _ = &mut interrupted => {
                    let kept = options.server.as_ref().map_or_else(|| shown(&self.dir), |s| format!("the topics on {s}"));
                    return Err(Interrupted { kept }.into());
                }
                _ = frames.tick() => {
                    if let Some(failed) = queries.iter().find_map(StreamingQuery::exception) {
                        return Err(failed.to_string().into());
                    }
                    if !options.send_only {
                        self.count_consumed(queries);
                    }
                    if let Some(screen) = screen.as_deref_mut() {
                        screen.show(&self.figures.lock())?;
                    }
                }
            }
        }
    }

    /// What the first query has read of the positions, and so how far behind the match it is.
    fn count_consumed(&self, queries: &[StreamingQuery]) {
        let read = |query: &StreamingQuery| {
            let progress = query.last_progress()?;
            let source = progress.sources.first()?;
            source
                .end_offset
                .as_object()?
                .values()
                .filter_map(serde_json::Value::as_object)
                .map(|partitions| partitions.values().filter_map(serde_json::Value::as_u64).sum::<u64>())
                .reduce(|a, b| a + b)
        };
        let positions = queries.first().and_then(read).unwrap_or(0);
        let events = queries.get(3).and_then(read).unwrap_or(0);
        self.figures.lock().consumed = positions + events;
    }

    async fn send(&self, speed: f64, samples: &[Sample]) -> Result<(), Failure> {
        let producer = Producer::connect(self.stage.client_config()?.set("linger.ms", "1")?).await?;
        let start = Instant::now();
        let (mut stride_end_ms, mut played_ms, mut last_ms) = (STRIDE_MS, 0.0, 0);
        let mut deliveries = Vec::new();
        for sample in samples {
            if sample.at_ms >= stride_end_ms {
                settle(&producer, &mut deliveries).await?;
                stride_end_ms = sample.at_ms - sample.at_ms % STRIDE_MS + STRIDE_MS;
            }
            played_ms += (sample.at_ms - last_ms).min(PAUSE_MAX_MS) as f64;
            last_ms = sample.at_ms;
            if speed > 0.0 {
                let due = start + Duration::from_secs_f64(played_ms / speed / 1000.0);
                if due > Instant::now() + Duration::from_millis(1) {
                    tokio::time::sleep_until(due.into()).await;
                }
            }
            self.send_sample(&producer, sample, &mut deliveries).await?;
        }
        // After the whistle the clock goes on a little: it closes the last windows.
        let end_ms = self.kickoff_ms + last_ms + AFTER_WHISTLE_MS;
        let whistle = serde_json::json!({"match_id": self.id, "timestamp": super::feed::timestamp(end_ms)}).to_string();
        deliveries.push(producer.send(Record::new(POSITIONS_TOPIC, None, Some(whistle.as_bytes()))).await?);
        settle(&producer, &mut deliveries).await?;
        producer.close().await;
        self.figures.lock().produced += 1;
        Ok(())
    }

    async fn send_sample(
        &self,
        producer: &Producer,
        sample: &Sample,
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), Failure> {
        let at_ms = self.kickoff_ms + sample.at_ms;
        for position in &sample.positions {
            let value = position.to_json(&self.id, at_ms);
            let record = Record {
                timestamp_ms: Some(at_ms),
                ..Record::new(POSITIONS_TOPIC, Some(position.player_id.as_bytes()), Some(value.as_bytes()))
            };
            deliveries.push(producer.send(record).await?);
        }
        for event in &sample.events {
            let value = event.to_json(&self.id, self.kickoff_ms);
            let record =
                Record { timestamp_ms: Some(at_ms), ..Record::new(EVENTS_TOPIC, None, Some(value.as_bytes())) };
            deliveries.push(producer.send(record).await?);
        }
        let mut figures = self.figures.lock();
        figures.produced += (sample.positions.len() + sample.events.len()) as u64;
        figures.clock_ms = sample.at_ms;
        Ok(())
    }

    fn history(&self) -> PathBuf {
        self.warehouse().join("player_second_history")
    }

    fn summarize(&self, options: &Football, columns: usize) -> String {
        let (me, figures) = (program(), self.figures.lock());
        let line = |text: String| text::prose("", &text, columns);
        let detail = |text: String| text::prose("  ", &text, columns);
        let command = |words: &[&str]| text::command(words, &[], columns);
        let records = thousands(figures.produced);
        if let (true, Some(server)) = (options.send_only, &options.server) {
            let bootstrap = format!("bootstrap={}", text::quoted(server));
            return format!(
                "\n{}",
                line(format!("{records} records sent to the topics of {server}. To run the queries over them:"))
            ) + &command(&[&me, "sql", "-f", "examples/football/pipeline.sql", "--set", &bootstrap]);
        }
        let total: f64 = figures.players.values().map(|p| p.meters).sum();
        let seconds: i64 = figures.players.values().map(|p| p.seconds).sum();
        let best = |key: fn(&view::Player) -> f64| {
            figures.players.iter().max_by(|a, b| key(a.1).total_cmp(&key(b.1))).map(|(n, p)| (n.clone(), key(p)))
        };
        let players = figures.players.len();
        let mut out =
            format!("\n{}", line(format!("{records} records, {players} players, {:.2} km together.", total / 1000.0)));
        if let (Some(far), Some(fast)) = (best(|p| p.meters), best(|p| p.top_speed)) {
            out += &line(format!(
                "Farthest: player {} ({:.0} m). Fastest: player {} ({:.1} m/s).",
                far.0, far.1, fast.0, fast.1
            ));
        }
        let (history, dir) = (shown(&self.history()), text::quoted(&shown(&self.dir)));
        out += &format!("\n{}", line(format!("Written: {seconds} rows, one for each player and second,")));
        out += &detail(format!("as Parquet in {history}"));
        out += &detail(format!("and as JSON in topic {SECONDS_TOPIC}; every position is in topic {POSITIONS_TOPIC}."));
        out += &line("Look further:".to_owned());
        let table = format!("parquet.`{}`", history.replace('`', "``"));
        let select = "SELECT player_id, round(sum(meters)) AS m, max(speed) AS top FROM";
        let query = select.split(' ').chain([table.as_str()]).chain("GROUP BY player_id ORDER BY m DESC".split(' '));
        out += &text::command(&[&me, "sql", "-e"], &query.collect::<Vec<_>>(), columns);
        let consume = |server: &str| {
            let look = ["--from-beginning", "--max-messages", "5", "--server", server];
            command(&[[me.as_str(), "consume", POSITIONS_TOPIC].as_slice(), look.as_slice()].concat())
        };
        let remove = || line("To be rid of it all:".to_owned()) + &command(&["rm", "-r", &dir]);
        match &options.server {
            Some(server) => {
                let server = text::quoted(server);
                out += &consume(&server);
                out += &remove();
                let topics = [POSITIONS_TOPIC, SECONDS_TOPIC, EVENTS_TOPIC];
                out += &command(&[&[&me, "topic", "delete"], topics.as_slice(), &["--server", &server]].concat());
            }
            None => {
                let data = text::quoted(&shown(&self.dir.join("broker")));
                out += &command(&[&me, "up", "--port", "9192", "--data-dir", &data]);
                out += &detail("# while that runs:".to_owned());
                out += &consume("127.0.0.1:9192");
                out += &remove();
            }
        }
        out
    }

    fn to_json(&self, options: &Football) -> String {
        let figures = self.figures.lock();
        serde_json::json!({
            "match_id": self.id,
            "records": figures.produced,
            "players": figures.players,
            "teams": figures.teams,
            "parquet": self.history(),
            "broker": options.server.is_none().then(|| self.dir.join("broker")),
            "server": options.server,
            "topics": [POSITIONS_TOPIC, SECONDS_TOPIC, EVENTS_TOPIC],
        })
        .to_string()
    }
}

/// Waits until everything sent is acknowledged.
async fn settle(producer: &Producer, deliveries: &mut Vec<Delivery>) -> Result<(), Failure> {
    producer.flush().await;
    for delivery in deliveries.drain(..) {
        delivery.await?;
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// What to type to call this program again: its path, unless the shell finds it by name.
fn program() -> String {
    let path = std::env::args().next().filter(|name| name.contains('/'));
    path.map_or_else(|| "caudal".to_owned(), |path| text::quoted(&path))
}
