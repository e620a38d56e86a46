//! Real matches from files: PFF tracking frames (JSON lines) and Metrica ball events (CSV).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use super::feed::{BallEvent, Position, Sample, round3};

/// A file that cannot be used as match data.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("failed to read {path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("failed to read {path}, line {line}: {reason}")]
    Line { path: String, line: usize, reason: String },
    #[error("failed to read {path}: it holds no {what}")]
    Empty { path: String, what: &'static str },
}

/// Half of a 105 x 68 m pitch: PFF counts from the centre spot.
const CENTRE_M: (f64, f64) = (52.5, 34.0);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame {
    video_time_ms: f64,
    #[serde(default)]
    home_players: Option<Vec<Seen>>,
    #[serde(default)]
    away_players: Option<Vec<Seen>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    jersey_num: String,
    x: Option<f64>,
    y: Option<f64>,
}

fn lines(path: &Path) -> Result<impl Iterator<Item = (usize, Result<String, FeedError>)>, FeedError> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|source| FeedError::Io { path: shown.clone(), source })?;
    let numbered = BufReader::new(file).lines().zip(1..);
    Ok(numbered.map(move |(line, n)| (n, line.map_err(|source| FeedError::Io { path: shown.clone(), source }))))
}

/// Reads PFF tracking frames. Time is the video's, which unlike the game clock never goes back; players are called
/// `home 9` and `away 10`. The positions are those seen; smoothed ones stand in most frames but not in all, and a step from
/// one kind to the other is no step that anybody took.
pub fn tracking(path: &Path) -> Result<Vec<Sample>, FeedError> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut start_ms = None;
    for (line, text) in lines(path)? {
        let text = text?;
        if text.trim().is_empty() {
            continue;
        }
        let bad = |reason: String| FeedError::Line { path: path.display().to_string(), line, reason };
        let frame: Frame = serde_json::from_str(&text).map_err(|e| bad(format!("not a tracking frame: {e}")))?;
        let start = *start_ms.get_or_insert(frame.video_time_ms);
        let at_ms = (frame.video_time_ms - start).round() as i64;
        if samples.last().is_some_and(|s| s.at_ms > at_ms) {
            return Err(bad("the video time goes back".into()));
        }
        let (home, away) = (frame.home_players.unwrap_or_default(), frame.away_players.unwrap_or_default());
        let place = |side: &str, p: &Seen| {
            Some(Position {
                player_id: format!("{side} {}", p.jersey_num),
                x: round3(p.x? + CENTRE_M.0),
                y: round3(p.y? + CENTRE_M.1),
            })
        };
        let home = home.iter().filter_map(|p| place("home", p));
        let positions = home.chain(away.iter().filter_map(|p| place("away", p))).collect();
        samples.push(Sample { at_ms, positions, events: Vec::new() });
    }
    if samples.is_empty() {
        return Err(FeedError::Empty { path: path.display().to_string(), what: "tracking frames" });
    }
    Ok(samples)
}

/// Reads Metrica ball events: `Team,Type,Subtype,Period,Start Frame,Start Time [s],...,From,To,...`, by the header's names.
pub fn events(path: &Path) -> Result<Vec<BallEvent>, FeedError> {
    let mut found = Vec::new();
    let mut columns: Option<[usize; 6]> = None;
    for (line, text) in lines(path)? {
        let text = text?;
        let bad = |reason: String| FeedError::Line { path: path.display().to_string(), line, reason };
        // Names and numbers only: the format has no quoting.
        let cells: Vec<&str> = text.trim_end().split(',').collect();
        let Some(columns) = columns else {
            let find = |name: &str| {
                cells
                    .iter()
                    .position(|c| c.trim() == name)
                    .ok_or_else(|| bad(format!("no column '{name}' in the header")))
            };
            columns = Some([
                find("Team")?,
                find("Type")?,
                find("Subtype")?,
                find("Start Time [s]")?,
                find("From")?,
                find("To")?,
            ]);
            continue;
        };
        if cells.len() == 1 {
            continue;
        }
        let [team, kind, subtype, start, from, to] = columns.map(|c| cells.get(c).map(|t| t.trim().to_owned()));
        let start = start.ok_or_else(|| bad("too few columns".into()))?;
        let seconds: f64 = start.parse().map_err(|_| bad(format!("'{start}' is not a time in seconds")))?;
        found.push(BallEvent {
            at_ms: (seconds * 1000.0).round() as i64,
            team: team.unwrap_or_default(),
            kind: kind.unwrap_or_default(),
            subtype: subtype.unwrap_or_default(),
            from: from.unwrap_or_default(),
            to: to.unwrap_or_default(),
        });
    }
    if found.is_empty() {
        return Err(FeedError::Empty { path: path.display().to_string(), what: "events" });
    }
    Ok(found)
}
