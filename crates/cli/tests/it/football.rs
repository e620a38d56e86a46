//! The figures of `caudal demo football` against a direct computation over the same files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What the pipeline's SQL says, computed plainly: milliseconds, metres.
#[derive(Debug, Default, Clone, PartialEq)]
struct Direct {
    meters: f64,
    top_speed: f64,
    sprints: i64,
    seconds: i64,
}

fn direct(samples: &[(i64, f64, f64)]) -> Direct {
    let mut seconds: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    for pair in samples.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let (s, m) = ((b.0 - a.0) as f64 / 1000.0, (b.1 - a.1).hypot(b.2 - a.2));
        if s <= 0.5 && m <= 12.0 * s {
            let second = seconds.entry(a.0.div_euclid(1000)).or_default();
            second.0 += m;
            second.1 += s;
        }
    }
    let mut total = Direct::default();
    for (second, (m, s)) in &seconds {
        let before = seconds.get(&(second - 1)).copied().unwrap_or_default();
        total.meters += m;
        total.seconds += 1;
        total.top_speed = total.top_speed.max(m / s);
        total.sprints += i64::from(*m >= 7.0 * s && (before.1 == 0.0 || before.0 < 7.0 * before.1));
    }
    total
}

/// Samples of each player as the demo reads them from a tracking file.
fn tracks(path: &Path) -> BTreeMap<String, Vec<(i64, f64, f64)>> {
    let round3 = |v: f64| (v * 1000.0).round() / 1000.0;
    let mut players: BTreeMap<String, Vec<(i64, f64, f64)>> = BTreeMap::new();
    let mut start = None;
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let frame: Value = serde_json::from_str(line).unwrap();
        let time = frame["videoTimeMs"].as_f64().unwrap();
        let at = (time - *start.get_or_insert(time)).round() as i64;
        for side in ["home", "away"] {
            for p in frame[format!("{side}Players")].as_array().into_iter().flatten() {
                if let (Some(x), Some(y)) = (p["x"].as_f64(), p["y"].as_f64()) {
                    let name = format!("{side} {}", p["jerseyNum"].as_str().unwrap());
                    players.entry(name).or_default().push((at, round3(x + 52.5), round3(y + 34.0)));
                }
            }
        }
    }
    players
}

/// Passes, shots, goals, recoveries and all events of each team.
fn events(path: &Path) -> BTreeMap<String, [i64; 5]> {
    let mut teams: BTreeMap<String, [i64; 5]> = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let team = teams.entry(cells[0].to_owned()).or_default();
        let shot = cells[1] == "SHOT";
        let marks = [cells[1] == "PASS", shot, shot && cells[2].ends_with("GOAL"), cells[1] == "RECOVERY", true];
        team.iter_mut().zip(marks).for_each(|(n, yes)| *n += i64::from(yes));
    }
    teams
}

fn play(tracking: &Path, ball: &Path) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_caudal"))
        .args(["demo", "football", "--speed", "0", "--output", "json"])
        .args([Path::new("--tracking"), tracking, Path::new("--events"), ball, Path::new("--data-dir"), dir.path()])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).unwrap()
}

fn compare(tracking: &Path, ball: &Path) {
    let shown = play(tracking, ball);
    let mut compared = 0;
    for (name, samples) in tracks(tracking) {
        let expected = direct(&samples);
        if expected.seconds == 0 {
            assert!(shown["players"].get(&name).is_none(), "{name} never moved within a second");
            continue;
        }
        let player = &shown["players"][&name];
        let close = |key: &str, value: f64| {
            let found = player[key].as_f64().unwrap_or(f64::NAN);
            assert!((found - value).abs() <= 1e-9 * value.abs().max(1.0), "{name} {key}: {found}, directly {value}");
        };
        close("meters", expected.meters);
        close("top_speed", expected.top_speed);
        assert_eq!(player["sprints"], expected.sprints, "{name}");
        assert_eq!(player["seconds"], expected.seconds, "{name}");
        compared += 1;
    }
    assert_eq!(shown["players"].as_object().unwrap().len(), compared);
    assert!(compared > 10);
    for (team, expected) in events(ball) {
        let found =
            ["passes", "shots", "goals", "recoveries", "events"].map(|k| shown["teams"][&team][k].as_i64().unwrap());
        assert_eq!(found, expected, "{team}");
    }
}

/// Two teams that run in circles of their own, seen 30 times a second with gaps and a jump, as trackers have them.
fn made_up(dir: &Path) -> (PathBuf, PathBuf) {
    let mut frames = String::new();
    for n in 0..600i32 {
        if (200..230).contains(&n) || n == 400 {
            continue;
        }
        let time = 154_487.8 + f64::from(n) * 33.367;
        let list = |side: f64| {
            let player = |i: i32| {
                let pace = 1.0 + f64::from(i) * 0.8;
                let radius = 6.0;
                let angle = f64::from(n) * 0.033_367 * pace / radius;
                let jump = if n == 300 && i == 3 { 40.0 } else { 0.0 };
                let (x, y) = (side * 20.0 + radius * angle.cos() + jump, f64::from(i) - 5.0 + radius * angle.sin());
                format!("{{\"jerseyNum\": \"{i}\", \"confidence\": \"HIGH\", \"x\": {x:.3}, \"y\": {y:.3}}}")
            };
            (1..=11).map(player).collect::<Vec<_>>().join(", ")
        };
        writeln!(
            frames,
            "{{\"videoTimeMs\": {time:.3}, \"period\": 1, \"homePlayers\": [{}], \"awayPlayers\": [{}]}}",
            list(1.0),
            list(-1.0)
        )
        .unwrap();
    }
    let mut ball = String::from("Team,Type,Subtype,Period,Start Frame,Start Time [s],End Frame,End Time [s],From,To\n");
    for n in 0..40 {
        let team = if n % 3 == 0 { "Away" } else { "Home" };
        let kind = ["PASS,", "PASS,HEAD", "SHOT,ON TARGET-GOAL", "RECOVERY,INTERCEPTION", "SHOT,OFF TARGET-OUT"][n % 5];
        writeln!(ball, "{team},{kind},1,{},{}.5,0,0,Player{n},", n * 12, n / 2).unwrap();
    }
    let (tracking, events) = (dir.join("tracking.jsonl"), dir.join("events.csv"));
    std::fs::write(&tracking, frames).unwrap();
    std::fs::write(&events, ball).unwrap();
    (tracking, events)
}

#[test]
fn figures_agree_with_a_direct_computation() {
    let dir = tempfile::tempdir().unwrap();
    let (tracking, ball) = made_up(dir.path());
    compare(&tracking, &ball);
}

/// Real frames and events, where they lie beside the project.
#[test]
fn real_figures_agree_with_a_direct_computation() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/football");
    let tracking = data.join("pff_10517_tracking_200_frames.jsonl");
    if tracking.exists() {
        compare(&tracking, &data.join("metrica_game1_events.csv"));
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.jsonl");
    std::fs::write(&file, "{\"videoTimeMs\": 1.0}\nno frame\n").unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_caudal"))
        .args(["demo", "football", "--tracking"])
        .args([&file, Path::new("--data-dir"), dir.path()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("bad.jsonl, line 2"), "{said}");
}

/// Two matches on one broker: topics are made for the first, and the second begins behind it.
#[test]
fn a_broker_that_is_there_already() {
    let broker = crate::broker::Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let play = |more: &[&str]| {
        let football = ["demo", "football", "--minutes", "1", "--speed", "0", "--output", "json", "--data-dir", data];
        let ran = crate::broker::run(&[&football[..], &["--server", &broker.address], more].concat(), "").ok();
        serde_json::from_str::<serde_json::Value>(&ran).unwrap()
    };
    let (first, second) = (play(&[]), play(&[]));
    assert_eq!(first["players"].as_object().unwrap().len(), 11);
    assert_eq!(first["players"], second["players"], "the same seed");
    assert_eq!(play(&["--send-only"])["records"], first["records"]);
    assert!(broker.caudal(&["topic", "list"], "").ok().contains("player-second"));
}

#[test]
fn a_broker_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let football = ["demo", "football", "--server", "127.0.0.1:1", "--data-dir", data.to_str().unwrap()];
    crate::broker::run(&football, "").fails(1, "`caudal up` starts a broker");
    assert!(!data.exists());
    crate::broker::run(&["demo", "football", "--send-only"], "").fails(2, "--server <HOST:PORT>");
}

/// `caudal demo football | head -1`: who reads no further does not make it fail.
#[test]
fn the_demo_ends_quietly_when_nobody_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_caudal"))
        .args(["demo", "football", "--speed", "0", "--minutes", "1", "--data-dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
