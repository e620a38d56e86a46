//! Standard input in blocks of whole lines, read by a thread of its own.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use tokio::sync::mpsc;

/// Blocks of whole lines; the last may lack its line end.
pub type Blocks = mpsc::Receiver<io::Result<Vec<u8>>>;

/// Bytes of input read at a time.
const BLOCK_BYTES: usize = 256 * 1024;

/// Begins to read standard input. At a terminal every line is prompted for with `>`, as Kafka's producer does.
pub fn blocks() -> Blocks {
    let (sender, receiver) = mpsc::channel(8);
    let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    std::thread::spawn(move || {
        let done = if is_interactive { prompt(&sender) } else { read(&mut io::stdin().lock(), &sender) };
        if let Err(error) = done {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

fn prompt(sender: &mpsc::Sender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let mut input = io::stdin().lock();
    loop {
        let mut out = io::stdout();
        out.write_all(b">").and_then(|()| out.flush())?;
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line)? == 0 || sender.blocking_send(Ok(line)).is_err() {
            return Ok(());
        }
    }
}

fn read(input: &mut impl Read, sender: &mpsc::Sender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let mut block = Vec::new();
    loop {
        let filled = block.len();
        block.resize(filled + BLOCK_BYTES, 0);
        let read = loop {
            match input.read(block.get_mut(filled..).unwrap_or_default()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        block.truncate(filled + read);
        let end = if read == 0 { block.len() } else { block.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1) };
        let rest = block.split_off(end);
        let lines = std::mem::replace(&mut block, rest);
        if !lines.is_empty() && sender.blocking_send(Ok(lines)).is_err() {
            return Ok(());
        }
        if read == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out what it holds in pieces of three bytes.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let (now, later) = self.0.split_at(self.0.len().min(3));
            buf[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    #[test]
    fn blocks_hold_whole_lines() {
        let (sender, mut receiver) = mpsc::channel(100);
        read(&mut Trickle(b"one\ntwo\nthree and more\nend"), &sender).unwrap();
        drop(sender);
        let mut found = Vec::new();
        while let Some(block) = receiver.blocking_recv() {
            found.push(String::from_utf8(block.unwrap()).unwrap());
        }
        assert_eq!(found.concat(), "one\ntwo\nthree and more\nend");
        assert!(found.iter().rev().skip(1).all(|b| b.ends_with('\n')), "{found:?}");
    }
}
