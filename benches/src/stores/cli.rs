//! The command line.

use std::path::Path;
use std::process::{self, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use tokio::runtime::Builder;

use crate::stores::chart;
use crate::stores::place::Place;
use crate::stores::ratios::{self, Numbers};
use crate::stores::report::Results;
use crate::stores::throughput::{self, TASKS};
use crate::stores::transactions;
use crate::{Failure, document, http, machine};

const USAGE: &str = "usage: stores [--quick] [--write] [--rounds <number>] [<part>..]
parts, all of them if none is named: ratios throughput transactions
  --quick   a round of a few keys, which only shows that everything is measured as it says
  --write   puts the tables into BENCHMARKS.md, and stores.json and stores.svg into benches/
  --rounds  how many rounds; the default is 11";

/// Measures as the arguments of this process ask for.
///
/// # Errors
/// A wrong argument, or a run that did not measure what it says.
pub fn main() -> Result<(), Failure> {
    if env::args().skip(1).any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse()?;
    let results = options.measure()?;
    for (name, table) in results.tables() {
        println!("\n## {name}\n\n{table}");
    }
    options.save(&results)
}

/// Lets this process, and those that it starts from now on, run on these processors only.
fn run_on(processors: &str) -> Result<(), Failure> {
    let mut taskset = Command::new("taskset");
    taskset.args(["--all-tasks", "--cpu-list", "--pid", processors, &process::id().to_string()]);
    if taskset.stdout(Stdio::null()).status()?.success() { Ok(()) } else { Err("taskset failed: see above".into()) }
}

#[derive(Debug)]
struct Options {
    quick: bool,
    write: bool,
    rounds: usize,
    parts: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut options = Self { quick: false, write: false, rounds: 11, parts: Vec::new() };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--write" => options.write = true,
                "--rounds" => options.rounds = arguments.next().ok_or(USAGE)?.parse()?,
                "ratios" | "throughput" | "transactions" => options.parts.push(argument),
                _ => return Err(USAGE.into()),
            }
        }
        if options.rounds == 0 {
            return Err("no rounds, no numbers".into());
        }
        if options.quick {
            options.rounds = 1;
        }
        if options.quick && options.write {
            return Err("the numbers of a quick run say nothing, so they are not written".into());
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    fn measure(&self) -> Result<Results, Failure> {
        let is_pinned = http::can_pin();
        let placed = if is_pinned {
            "client and servers on one processor, but for many tasks at once"
        } else {
            "client and servers not pinned"
        };
        let machine = machine::described(self.rounds, placed);
        let processors = thread::available_parallelism()?.get();
        // Otherwise a round trip takes longer if a process is woken on another processor, and some runs do that and some do not.
        if is_pinned {
            run_on("0")?;
        }
        let mut results = Results { machine, quick: self.quick, rounds: self.rounds, ..Results::default() };
        // One thread, as cheap as a client can be, so that nothing hides what the store adds.
        let alone = Builder::new_current_thread().enable_all().build()?;
        if self.wants("ratios") || self.wants("transactions") {
            let places = alone.block_on(Place::all())?;
            let mut numbers = Numbers::default();
            for place in places.iter().filter(|_| self.wants("ratios")) {
                let batch = if self.quick { 4 } else { 200 };
                results.ratios.extend(ratios::measure(&alone, place, &mut numbers, self.rounds, batch)?);
            }
            for place in places.iter().filter(|_| self.wants("transactions")) {
                let batch = if self.quick { 10 } else { 300 };
                results.transactions.extend(alone.block_on(transactions::measure(place, self.rounds, batch))?);
            }
        }
        if self.wants("throughput") {
            if is_pinned {
                run_on(&format!("0-{}", processors - 1))?;
            }
            let places = alone.block_on(Place::all())?;
            let runtime = Builder::new_multi_thread().enable_all().build()?;
            let (tasks, time): (&[usize], _) = if self.quick { (&[1, 4], 5) } else { (&TASKS, 200) };
            let time = Duration::from_millis(time);
            results.throughput = throughput::measure(&runtime, &places, tasks, self.rounds, time)?;
        }
        Ok(results)
    }

    fn save(&self, results: &Results) -> Result<(), Failure> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // A run of one part renews its table, and leaves the files that hold the whole run alone.
        let whole = self.write && self.parts.is_empty();
        let folder = if whole { root.join("benches") } else { env::temp_dir().join("idem-benches") };
        fs::create_dir_all(&folder)?;
        let (numbers, picture) = (folder.join("stores.json"), folder.join("stores.svg"));
        fs::write(&numbers, serde_json::to_string(results)? + "\n")?;
        if !results.throughput.is_empty() {
            fs::write(&picture, chart::draw(results))?;
        }
        println!("\nWrote {} and {}.", numbers.display(), picture.display());
        if self.write {
            let page = root.join("BENCHMARKS.md");
            let written = document::with_tables(&fs::read_to_string(&page)?, &results.tables())?;
            fs::write(&page, written)?;
            println!("Wrote the tables of {}.", page.display());
        }
        Ok(())
    }
}
