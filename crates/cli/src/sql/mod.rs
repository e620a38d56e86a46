//! `caudal sql`: statements from the command line, from a file, or typed.
//!
//! Queries over streams go on until they are told to stop; with `--trigger availableNow` each takes what is there and
//! ends before the next statement runs.

mod output;
mod shell;
mod signals;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use caudal_engine::query::{StreamingQuery, StreamingQueryProgress};
use caudal_engine::sql::{SessionConfig, SqlSession, Statement, StatementResult};
use clap::Args;
use tokio::sync::mpsc;

pub use output::Format;
use output::Printer;
use signals::Signals;

/// Address space, not memory: only what is used is taken.
const STACK_BYTES: usize = 512 * 1024 * 1024;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Run Spark SQL: a shell, a file, or one statement
#[derive(Debug, Args)]
pub struct Sql {
    /// Run the statements of a file; -: of standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "execute")]
    file: Option<PathBuf>,
    /// Run these statements
    #[arg(short, long, value_name = "TEXT")]
    execute: Option<String>,
    /// How rows are printed; json: one object per row
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// A configuration key or a variable for ${name}; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// When batches of streaming queries start: default, availableNow, once, or an interval such as '1 second'
    #[arg(long, value_name = "TRIGGER")]
    trigger: Option<String>,
    /// Print each batch's progress to stderr: Spark's StreamingQueryProgress, one JSON object per line
    #[arg(long)]
    progress: bool,
    /// Where tables without a place of their own live
    #[arg(long, value_name = "DIR", default_value = "spark-warehouse")]
    warehouse: PathBuf,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not KEY=VALUE")),
    }
}

/// Runs what the arguments name.
pub fn run(options: Sql) -> ExitCode {
    // Planning recurses over the statement: a sum of thousands of terms is as many frames deep.
    let runner = std::thread::Builder::new().name("sql".into()).stack_size(STACK_BYTES).spawn(move || run_all(options));
    let done = match runner.map(std::thread::JoinHandle::join) {
        Ok(Ok(done)) => done,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(e) => Err(format!("failed to start a thread: {e}").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the rows has had enough.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}{}", advice(&e.to_string()));
            e.downcast_ref::<Interrupted>().map_or(ExitCode::FAILURE, |by| ExitCode::from(by.0))
        }
    }
}

/// What to do about an error that comes from Kafka, as a line of its own.
fn advice(error: &str) -> &'static str {
    if error.contains("is not reachable") {
        "\n`caudal up` starts a broker on 127.0.0.1:9092; kafka.bootstrap.servers names another one."
    } else if error.contains("(UNKNOWN_TOPIC_OR_PARTITION)") {
        "\n`caudal topic create NAME` creates a topic, `caudal topic list` shows those that there are."
    } else {
        ""
    }
}

/// Where the statements come from.
enum Input {
    Script(String),
    /// From a program: each runs as soon as its `;` has come, the first error ends it all.
    Piped,
    Typed,
}

/// A signal came before all statements had run. Holds the exit code.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted(u8);

fn run_all(options: Sql) -> Result<(), Failure> {
    let mut conf: BTreeMap<String, String> = options.set.into_iter().collect();
    if let Some(trigger) = options.trigger {
        conf.insert("caudal.sql.trigger".to_owned(), trigger);
    }
    let piped = !std::io::stdin().is_terminal();
    let input = match (&options.file, options.execute) {
        (Some(path), _) if path.as_os_str() == "-" => Input::Piped,
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("failed to read {}: {e}", path.display()))?;
            Input::Script(text)
        }
        (None, Some(text)) => Input::Script(text),
        (None, None) if piped => Input::Piped,
        (None, None) => Input::Typed,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build()?;
    let mut session = SqlSession::new(SessionConfig { conf, warehouse: options.warehouse })?;
    if options.progress {
        session.queries_mut().add_listener(print_progress);
    }
    let printer = Printer::new(options.output);
    let mut runner = Runner { session, printer, queries: Vec::new(), signals: Signals::listen()?, waiting: false };
    runner.warn();
    let done = match input {
        Input::Script(text) => runtime.block_on(runner.run_script(&text)),
        Input::Piped => runtime.block_on(runner.run_piped()),
        Input::Typed => shell::run(&runtime, &mut runner),
    };
    // What still evaluates for a statement that was interrupted does not hold the end up.
    runtime.shutdown_background();
    done
}

fn print_progress(progress: &StreamingQueryProgress) {
    if let Ok(line) = serde_json::to_string(progress) {
        eprintln!("{line}");
    }
}

/// A session, where its rows are printed, and the queries that run on.
struct Runner {
    session: SqlSession,
    printer: Printer,
    queries: Vec<StreamingQuery>,
    signals: Signals,
    /// All statements have run; streaming queries go on until they are told to stop.
    waiting: bool,
}

impl Runner {
    /// Runs a script, then waits for its streaming queries or for a signal.
    async fn run_script(&mut self, text: &str) -> Result<(), Failure> {
        self.run_guarded(async |runner: &mut Runner| runner.script(text).await).await
    }

    /// Runs what is piped in, then waits for its streaming queries or for a signal.
    async fn run_piped(&mut self) -> Result<(), Failure> {
        self.run_guarded(async |runner: &mut Runner| {
            let (sender, mut statements) = mpsc::channel(1);
            // A thread of its own: nothing else can be told to stop reading.
            std::thread::spawn(move || {
                shell::read_statements(std::io::stdin().lock(), |read| sender.blocking_send(read).is_ok())
            });
            while let Some(read) = statements.recv().await {
                let (text, first_line) = read.map_err(|e| format!("failed to read the standard input: {e}"))?;
                // As far down as in the whole, so that errors name its lines.
                runner.script(&("\n".repeat(first_line) + &text)).await?;
            }
            Ok(())
        })
        .await
    }

    async fn run_guarded(&mut self, run: impl AsyncFnOnce(&mut Runner) -> Result<(), Failure>) -> Result<(), Failure> {
        self.waiting = false;
        let mut running = self.signals.run();
        let work = async {
            run(self).await?;
            self.wait().await
        };
        let outcome = tokio::select! {
            done = work => done.map(|()| None),
            code = running.asked_to_stop() => Ok(Some(code)),
        };
        for query in self.queries.iter().rev() {
            query.stop().await;
        }
        match outcome? {
            // To stop streaming queries is how one ends them.
            Some(code) if !self.waiting => Err(Interrupted(code).into()),
            _ => Ok(()),
        }
    }

    /// Runs statements one after the other.
    async fn script(&mut self, text: &str) -> Result<(), Failure> {
        let statements = self.session.parse(text)?;
        let several = statements.len() > 1;
        for statement in &statements {
            let before = self.queries.len();
            let done = match self.execute(statement).await {
                Ok(()) if self.takes_what_is_there() => self.finish(before).await,
                done => done,
            };
            done.map_err(|e| if several { located(e, statement) } else { e })?;
        }
        Ok(())
    }

    /// Streaming queries end by themselves.
    fn takes_what_is_there(&self) -> bool {
        let trigger = self.session.conf("caudal.sql.trigger");
        trigger.is_some_and(|t| t.eq_ignore_ascii_case("availableNow") || t.eq_ignore_ascii_case("once"))
    }

    /// Waits for the queries from this one on, which take what is there, and says what they did.
    async fn finish(&mut self, from: usize) -> Result<(), Failure> {
        for query in self.queries.split_off(from) {
            query.await_termination().await?;
            if let Some(name) = query.name() {
                let rows: u64 = query.recent_progress().iter().map(|p| p.num_input_rows).sum();
                self.printer.message(&format!("streaming table {name} took what was there: {rows} rows read"));
            }
        }
        Ok(())
    }

    /// Waits for the streaming queries.
    async fn wait(&mut self) -> Result<(), Failure> {
        self.waiting = true;
        // The first that fails ends the whole: what runs beside it would show half of the pipeline.
        let mut waiting: Vec<_> = self.queries.iter().map(|q| Box::pin(q.await_termination())).collect();
        while !waiting.is_empty() {
            let (done, index) = first(&mut waiting).await;
            drop(waiting.swap_remove(index));
            done?;
        }
        Ok(())
    }

    async fn execute(&mut self, statement: &Statement) -> Result<(), Failure> {
        match self.session.execute(statement).await? {
            StatementResult::Rows(rows) => self.printer.rows(rows).await?,
            StatementResult::Streaming(query) => {
                if !self.takes_what_is_there() {
                    let name = query.name().unwrap_or_default();
                    let note = "Ctrl-C stops it, the same statement goes on from there";
                    self.printer.message(&format!("streaming table {name} is running; {note}"));
                }
                self.queries.push(query);
            }
            StatementResult::StreamingSelect(select) => {
                let mode = select.output_mode;
                let query = self.session.start(&select, self.printer.sink()?, mode, None, None).await?;
                self.queries.push(query);
            }
            StatementResult::Done(message) => self.printer.message(&message),
        }
        self.warn();
        Ok(())
    }

    fn warn(&self) {
        for warning in self.session.take_warnings() {
            self.printer.message(&warning);
        }
    }
}

/// An error that has no place in the text says in which statement it arose.
fn located(error: Failure, statement: &Statement) -> Failure {
    if error.is::<std::io::Error>() || error.to_string().contains("(line ") {
        return error;
    }
    let mut text: String = statement.text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(60) {
        text.truncate(end);
        text.push_str(" ...");
    }
    format!("{error}\n in the statement at line {}: {text}", statement.line).into()
}

/// Waits for the first of several futures: its output and its index.
async fn first<F: Future + Unpin>(waiting: &mut [F]) -> (F::Output, usize) {
    std::future::poll_fn(|cx| {
        for (index, future) in waiting.iter_mut().enumerate() {
            if let std::task::Poll::Ready(done) = std::pin::Pin::new(future).poll(cx) {
                return std::task::Poll::Ready((done, index));
            }
        }
        std::task::Poll::Pending
    })
    .await
}
