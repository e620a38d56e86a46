//! A made-up half of football: eleven players of one team on 100 x 65 m, ten samples a second.
//!
//! Everybody keeps to a role, drawn towards the ball, at a pace that changes every few seconds: mostly walking and
//! jogging, now and then a sprint. Speeds change by at most 3.5 m/s per second, so runs look like runs. The same seed
//! gives the same half.

use super::feed::{Position, Sample, round3};

const LENGTH_M: f64 = 100.0;
const WIDTH_M: f64 = 65.0;
const STEP_S: f64 = 0.1;
/// Metres per second squared.
const ACCELERATION: f64 = 3.5;

/// Goalkeeper, four at the back, four in midfield, two up front: where they stand when the ball is in the middle.
const ROLES: [(f64, f64); 11] = [
    (5.0, 32.5),
    (22.0, 10.0),
    (18.0, 25.0),
    (18.0, 40.0),
    (22.0, 55.0),
    (42.0, 10.0),
    (38.0, 26.0),
    (38.0, 39.0),
    (42.0, 55.0),
    (62.0, 25.0),
    (62.0, 40.0),
];

/// How fast a player wants to go (m/s), for how long (s, from..to), and how often (per mille).
const PACES: [(f64, f64, f64, u64); 5] =
    [(0.4, 2.0, 6.0, 240), (1.4, 3.0, 9.0, 420), (3.0, 3.0, 7.0, 240), (5.2, 2.0, 4.0, 84), (8.4, 1.5, 3.5, 16)];

/// SplitMix64: small, and the same on every machine for ever.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Debug, Clone)]
struct Runner {
    role: (f64, f64),
    at: (f64, f64),
    goal: (f64, f64),
    speed: f64,
    wanted: f64,
    until_s: f64,
}

/// Yields the samples of a half, in order.
#[derive(Debug, Clone)]
pub struct Simulator {
    dice: Dice,
    ball: (f64, f64),
    ball_goal: (f64, f64),
    players: Vec<Runner>,
    step: u64,
    steps: u64,
}

impl Simulator {
    /// A half of `length_s` seconds.
    pub fn new(seed: u64, length_s: u64) -> Simulator {
        let middle = (LENGTH_M / 2.0, WIDTH_M / 2.0);
        let player =
            |role: &(f64, f64)| Runner { role: *role, at: *role, goal: *role, speed: 0.0, wanted: 1.4, until_s: 0.0 };
        Simulator {
            dice: Dice(seed),
            ball: middle,
            ball_goal: middle,
            players: ROLES.iter().map(player).collect(),
            step: 0,
            steps: length_s * 10 + 1,
        }
    }

    fn move_ball(&mut self) {
        let (dx, dy) = (self.ball_goal.0 - self.ball.0, self.ball_goal.1 - self.ball.1);
        let distance = dx.hypot(dy);
        if distance < 1.0 {
            self.ball_goal = (self.dice.between(3.0, LENGTH_M - 3.0), self.dice.between(3.0, WIDTH_M - 3.0));
        } else {
            let reach = (9.0 * STEP_S).min(distance);
            self.ball = (self.ball.0 + dx / distance * reach, self.ball.1 + dy / distance * reach);
        }
    }

    fn choose(dice: &mut Dice, player: &mut Runner, ball: (f64, f64), now_s: f64) {
        let mut roll = dice.next() % 1000;
        let keeper = player.role.0 < 10.0;
        let mut pace = PACES[1];
        for candidate in PACES {
            if roll < candidate.3 {
                pace = candidate;
                break;
            }
            roll -= candidate.3;
        }
        let (mut wanted, shortest, longest, _) = pace;
        if keeper {
            wanted = wanted.min(3.0) * 0.6;
        }
        player.wanted = wanted * dice.between(0.9, 1.08);
        player.until_s = now_s + dice.between(shortest, longest);
        let pull = if keeper { 0.08 } else { 0.45 };
        let x = player.role.0 + (ball.0 - LENGTH_M / 2.0) * pull + dice.between(-9.0, 9.0);
        let y = player.role.1 + (ball.1 - WIDTH_M / 2.0) * pull * 0.8 + dice.between(-7.0, 7.0);
        // A sprint goes somewhere: straight on, far enough for its time.
        let far = if player.wanted > 6.0 { player.wanted * longest } else { 0.0 };
        let (dx, dy) = (x - player.at.0, y - player.at.1);
        let norm = dx.hypot(dy).max(0.1);
        let goal = if far > norm { (player.at.0 + dx / norm * far, player.at.1 + dy / norm * far) } else { (x, y) };
        player.goal = (goal.0.clamp(0.5, LENGTH_M - 0.5), goal.1.clamp(0.5, WIDTH_M - 0.5));
    }

    fn advance(player: &mut Runner) {
        let (dx, dy) = (player.goal.0 - player.at.0, player.goal.1 - player.at.1);
        let distance = dx.hypot(dy);
        // Brakes in time to stop at the goal.
        let wanted = player.wanted.min((2.0 * ACCELERATION * distance).sqrt());
        let change = (wanted - player.speed).clamp(-ACCELERATION * STEP_S, ACCELERATION * STEP_S);
        player.speed = (player.speed + change).max(0.0);
        if distance > 1e-6 {
            let reach = (player.speed * STEP_S).min(distance);
            player.at = (player.at.0 + dx / distance * reach, player.at.1 + dy / distance * reach);
        }
    }
}

impl Iterator for Simulator {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        if self.step >= self.steps {
            return None;
        }
        let now_s = self.step as f64 * STEP_S;
        if self.step > 0 {
            self.move_ball();
            let ball = self.ball;
            for player in &mut self.players {
                let arrived = (player.goal.0 - player.at.0).hypot(player.goal.1 - player.at.1) < 0.3;
                if now_s >= player.until_s || (arrived && player.wanted > 1.5) {
                    Self::choose(&mut self.dice, player, ball, now_s);
                }
                Self::advance(player);
            }
        }
        let at_ms = i64::try_from(self.step).unwrap_or(i64::MAX).saturating_mul(100);
        self.step += 1;
        let positions = self.players.iter().zip(1..).map(|(p, id): (&Runner, u32)| Position {
            player_id: id.to_string(),
            x: round3(p.at.0),
            y: round3(p.at.1),
        });
        Some(Sample { at_ms, positions: positions.collect(), events: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_plausible() {
        let samples: Vec<Sample> = Simulator::new(7, 2700).collect();
        assert_eq!(samples.len(), 27_001);
        for player in 0..11 {
            let mut total = 0.0;
            let mut top: f64 = 0.0;
            for pair in samples.windows(2) {
                let (a, b) = (&pair[0].positions[player], &pair[1].positions[player]);
                let step = (b.x - a.x).hypot(b.y - a.y);
                total += step;
                top = top.max(step / STEP_S);
                assert!((0.0..=LENGTH_M).contains(&b.x) && (0.0..=WIDTH_M).contains(&b.y));
            }
            let range = if player == 0 { 1_500.0..4_000.0 } else { 3_500.0..7_500.0 };
            assert!(range.contains(&total), "player {} ran {total} m", player + 1);
            assert!(top < 9.6, "player {} reached {top} m/s", player + 1);
            assert!(player == 0 || top > 6.5, "player {} never sprinted: {top}", player + 1);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_half() {
        assert!(Simulator::new(1, 60).eq(Simulator::new(1, 60)));
        assert!(!Simulator::new(1, 60).eq(Simulator::new(2, 60)));
    }
}
