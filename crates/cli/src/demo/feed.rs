//! What happens on the pitch, as a stream of samples in time order, wherever it comes from.

/// Where one player is at one moment. Metres; (0, 0) is a corner of the pitch.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    pub player_id: String,
    pub x: f64,
    pub y: f64,
}

/// All that was seen at one moment of the match.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Milliseconds since kick-off, never going back.
    pub at_ms: i64,
    pub positions: Vec<Position>,
    pub events: Vec<BallEvent>,
}

/// One event with the ball: a pass, a shot, a recovery.
#[derive(Debug, Clone, PartialEq)]
pub struct BallEvent {
    pub at_ms: i64,
    pub team: String,
    pub kind: String,
    pub subtype: String,
    pub from: String,
    pub to: String,
}

impl BallEvent {
    /// The message value for topic `ball-event`.
    pub fn to_json(&self, match_id: &str, kickoff_ms: i64) -> String {
        serde_json::json!({
            "match_id": match_id,
            "timestamp": timestamp(kickoff_ms + self.at_ms),
            "team": self.team,
            "type": self.kind,
            "subtype": self.subtype,
            "player_from": self.from,
            "player_to": self.to,
        })
        .to_string()
    }
}

impl Position {
    /// The message value for topic `player-position`.
    pub fn to_json(&self, match_id: &str, at_ms: i64) -> String {
        serde_json::json!({
            "match_id": match_id,
            "player_id": self.player_id,
            "timestamp": timestamp(at_ms),
            "position_x": round3(self.x),
            "position_y": round3(self.y),
        })
        .to_string()
    }
}

/// Trackers give millimetres at best.
pub fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// ISO 8601 in UTC with milliseconds, for a time in milliseconds since 1970.
pub fn timestamp(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map(|t| t.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
        .unwrap_or_default()
}

/// Merges positions and ball events into one stream by time.
pub fn merge(samples: Vec<Sample>, events: Vec<BallEvent>) -> Vec<Sample> {
    let alone = events.into_iter().map(|e| Sample { at_ms: e.at_ms, positions: Vec::new(), events: vec![e] });
    let mut all: Vec<Sample> = samples.into_iter().chain(alone).collect();
    // Stable: what was given in order stays in order.
    all.sort_by_key(|s| s.at_ms);
    all
}
