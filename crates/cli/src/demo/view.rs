//! What the bench sees: a table that is drawn over and over on a terminal, and lines elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, Table};

/// One player's figures so far.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Player {
    pub meters: f64,
    /// Metres per second, over the last full second.
    pub speed: f64,
    pub top_speed: f64,
    pub sprints: i64,
    /// Seconds of play that the figures cover.
    pub seconds: i64,
}

/// One team's ball events so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Team {
    pub passes: i64,
    pub shots: i64,
    pub goals: i64,
    pub recoveries: i64,
    pub events: i64,
}

/// All that is shown.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Figures {
    pub players: BTreeMap<String, Player>,
    pub teams: BTreeMap<String, Team>,
    /// How far the match has come, and how long it is. Milliseconds.
    pub clock_ms: i64,
    pub length_ms: i64,
    /// Records written to the topics, and read from them by the queries.
    pub produced: u64,
    pub consumed: u64,
}

impl Figures {
    /// Records that no query has seen yet.
    pub fn lag(&self) -> u64 {
        self.produced.saturating_sub(self.consumed)
    }
}

/// `12:34`, minutes and seconds of the match.
pub fn clock(ms: i64) -> String {
    format!("{}:{:02}", ms / 60_000, ms / 1000 % 60)
}

/// Orders `home 9` before `home 10`, and `2` before `11`.
fn natural_key(name: &str) -> (String, u64) {
    let digits = name.chars().rev().take_while(char::is_ascii_digit).count();
    let (text, number) = name.split_at(name.len() - digits);
    (text.to_owned(), number.parse().unwrap_or(0))
}

/// The bar's full width is its share of the line; partial cells in eighths.
fn bar(share: f64, cells: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let filled = (share.clamp(0.0, 1.0) * cells as f64 * 8.0).round() as usize;
    let mut out = "█".repeat(filled / 8);
    out.push_str(EIGHTHS.get(filled % 8).copied().unwrap_or_default());
    let used = filled / 8 + usize::from(!filled.is_multiple_of(8));
    out.push_str(&"·".repeat(cells.saturating_sub(used)));
    out
}

pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// The players' table, one line each.
pub fn players_table(figures: &Figures) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(vec![
        Cell::new("player"),
        right("distance m".into()),
        right("now m/s".into()),
        right("top m/s".into()),
        right("sprints".into()),
    ]);
    let mut players: Vec<_> = figures.players.iter().collect();
    players.sort_by_key(|(name, _)| natural_key(name));
    for (name, p) in players {
        table.add_row(vec![
            Cell::new(name),
            right(format!("{:.1}", p.meters)),
            right(format!("{:.1}", p.speed)),
            right(format!("{:.1}", p.top_speed)),
            right(p.sprints.to_string()),
        ]);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.to_string()
}

/// Ball events, one line for each team; the sum of all only where there is room.
pub fn teams_lines(figures: &Figures, width: usize) -> Vec<String> {
    let line = |(name, t): (&String, &Team)| {
        let line =
            format!("{name}: {} passes, {} shots, {} goals, {} recoveries", t.passes, t.shots, t.goals, t.recoveries);
        let whole = format!("{line} ({} events)", t.events);
        if whole.chars().count() <= width { whole } else { line }
    };
    figures.teams.iter().map(line).collect()
}

/// The whole picture as lines no wider than `width` and no more than `height`: clock and lag always, then as many players
/// as there is room for, then the teams.
pub fn render(figures: &Figures, width: usize, height: usize) -> Vec<String> {
    let share = if figures.length_ms > 0 { figures.clock_ms as f64 / figures.length_ms as f64 } else { 0.0 };
    let before = format!("{:>6} ", clock(figures.clock_ms));
    let after = format!(" {:>3.0} %", share * 100.0);
    let cells = width.saturating_sub(before.len() + after.len()).min(60);
    let mut lines = vec![format!("{before}{}{after}", bar(share, cells))];
    let table = players_table(figures);
    let players: Vec<&str> = table.lines().collect();
    let teams = teams_lines(figures, width);
    let room = height.saturating_sub(2);
    let room_for_players = if room >= players.len() + teams.len() { players.len() } else { room };
    if players.len() <= room_for_players {
        lines.extend(players.iter().map(|&l| l.to_owned()));
        lines.extend(teams.into_iter().take(room - players.len()));
    } else if room >= 3 {
        let shown = room - 1;
        lines.extend(players.iter().take(shown).map(|&l| l.to_owned()));
        lines.push(format!("and {} more, at the end or on a higher terminal", players.len() - shown));
    }
    lines.push(format!("{} records in, lag {}", thousands(figures.produced), thousands(figures.lag())));
    lines.into_iter().map(|l| l.trim_end().chars().take(width).collect()).take(height.max(1)).collect()
}

/// Draws on a terminal in place, and elsewhere a line now and then.
pub struct Screen {
    live: bool,
    drawn_lines: usize,
    last_minute: i64,
}

impl Screen {
    pub fn new() -> Screen {
        // A terminal without a name may not know how to move its cursor.
        let moves = std::env::var("TERM").is_ok_and(|name| !["", "dumb"].contains(&name.as_str()));
        Screen { live: moves && io::stdout().is_terminal(), drawn_lines: 0, last_minute: -1 }
    }

    /// Columns and lines of the terminal; one that does not say has 80 and 24.
    pub fn size() -> (usize, usize) {
        let (columns, lines) = rustix::termios::tcgetwinsize(io::stdout()).map_or((0, 0), |w| (w.ws_col, w.ws_row));
        let or = |found: u16, usual: usize| if found == 0 { usual } else { usize::from(found) };
        (or(columns, 80), or(lines, 24))
    }

    /// Shows the figures as they are now.
    pub fn show(&mut self, figures: &Figures) -> io::Result<()> {
        if !self.live {
            return self.line_now_and_then(figures);
        }
        let (columns, rows) = Screen::size();
        // The cursor waits on a line of its own, and a line that is full would move it on.
        self.draw(&render(figures, columns.saturating_sub(1), rows.saturating_sub(1)), rows)
    }

    /// Shows all figures, of however many lines, as what stays on the terminal.
    pub fn finish(&mut self, figures: &Figures) -> io::Result<()> {
        if !self.live {
            return self.line_now_and_then(figures);
        }
        let (columns, rows) = Screen::size();
        self.draw(&render(figures, columns.saturating_sub(1), usize::MAX), rows)
    }

    /// Replaces what was drawn before. One write per picture, so that nobody sees half of one.
    fn draw(&mut self, lines: &[String], rows: usize) -> io::Result<()> {
        let mut picture = String::from("\x1b[?25l\r");
        // A terminal that became smaller has lost the lines above its first.
        let up = self.drawn_lines.min(rows.saturating_sub(1));
        if up > 0 {
            picture.push_str(&format!("\x1b[{up}A"));
        }
        for line in lines {
            picture.push_str(line);
            picture.push_str("\x1b[K\r\n");
        }
        picture.push_str("\x1b[J\x1b[?25h");
        self.drawn_lines = lines.len();
        let mut out = io::stdout().lock();
        out.write_all(picture.as_bytes())?;
        out.flush()
    }

    /// Not a terminal: one line every five minutes of the match.
    fn line_now_and_then(&mut self, figures: &Figures) -> io::Result<()> {
        let minute = figures.clock_ms / 60_000;
        if minute / 5 == self.last_minute / 5 && self.last_minute >= 0 || figures.players.is_empty() {
            return Ok(());
        }
        self.last_minute = minute;
        let total: f64 = figures.players.values().map(|p| p.meters).sum();
        let top = figures.players.values().map(|p| p.top_speed).fold(0.0, f64::max);
        writeln!(
            io::stdout(),
            "{:>6}  {} players, {:.2} km together, top speed {top:.1} m/s, lag {}",
            clock(figures.clock_ms),
            figures.players.len(),
            total / 1000.0,
            thousands(figures.lag())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let player = Player { meters: 1234.56, speed: 3.2, top_speed: 8.1, sprints: 2, seconds: 600 };
        let players = ["11", "2", "1"].map(|n| (n.to_owned(), player.clone()));
        Figures {
            players: players.into(),
            teams: [("Home".to_owned(), Team { passes: 12, ..Team::default() })].into(),
            clock_ms: 754_000,
            length_ms: 2_700_000,
            produced: 82_940,
            consumed: 82_900,
        }
    }

    #[test]
    fn the_picture_fits_and_is_in_order() {
        let lines = render(&figures(), 70, 24);
        assert!(lines[0].starts_with(" 12:34 █") && lines[0].ends_with(" 28 %"), "{}", lines[0]);
        let names: Vec<&str> = lines[2..5].iter().filter_map(|l| l.split_whitespace().next()).collect();
        assert_eq!(names, ["1", "2", "11"]);
        assert_eq!(lines.last().unwrap(), "82,940 records in, lag 40");
        for width in [20, 40, 200] {
            assert!(render(&figures(), width, 24).iter().all(|l| l.chars().count() <= width));
        }
    }

    #[test]
    fn the_picture_is_no_higher_than_the_terminal() {
        for height in 1..10 {
            let lines = render(&figures(), 70, height);
            assert!(lines.len() <= height && lines[0].contains("28 %"), "{height}: {lines:?}");
            assert!(height < 2 || lines.last().unwrap().contains("records in"), "{height}: {lines:?}");
        }
        let lines = render(&figures(), 70, 6);
        assert!(lines[2].trim_start().starts_with('1') && lines.len() == 6, "{lines:?}");
        let lines = render(&figures(), 70, 5);
        assert_eq!(lines[3], "and 2 more, at the end or on a higher terminal");
        assert!(render(&figures(), 70, 7)[5].starts_with("Home: 12 passes"));
    }

    #[test]
    fn bars_fill_by_eighths() {
        assert_eq!(bar(0.0, 4), "····");
        assert_eq!(bar(0.5, 4), "██··");
        assert_eq!(bar(0.53125, 4), "██▏·");
        assert_eq!(bar(2.0, 4), "████");
    }
}
