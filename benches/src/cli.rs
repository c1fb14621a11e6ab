//! The command line, shared with the program that has the peers beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use crate::report::{Memory, Results};
use crate::row::Kind;
use crate::subject::Subject;
use crate::{Failure, chart, document, http, in_process, machine, promises, scale};

const USAGE: &str = "usage: idem-benches [--quick] [--write] [--rounds <number>] [--keys <most live keys>] [<part>..]
parts, all of them if none is named: in-process http promises scale memory
  --quick   a round of a few requests, which only shows that everything is measured as it says
  --write   puts the tables into BENCHMARKS.md, and results.json and chart.svg into benches/
  --rounds  how many rounds; the default is 11
  --keys    how many keys the fullest store of the part `scale` holds; the default is 1000000, and 10000000 takes 8 GB";

/// Measures `subjects` as the arguments of this process ask for. A wrong argument, or a run that did not measure what it
/// says, is told on stderr.
pub fn main(subjects: &[Subject]) -> ExitCode {
    told(run(subjects))
}

/// The exit code of a program whose work ended so; a failure is told in its own words.
pub fn told(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(subjects: &[Subject]) -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let named = |name: &str| subjects.iter().find(|subject| subject.name == name).ok_or("there is no such subject");
    // The other processes of a run are this program, too.
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", name, row] => http::run_server(named(name)?, Kind::parse(row).ok_or("there is no such row")?),
        ["load"] => http::run_load(subjects),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            let options = Options::parse(&arguments)?;
            let results = options.measure(subjects)?;
            for (name, table) in results.tables() {
                println!("\n## {name}\n\n{table}");
            }
            options.save(&results)
        }
    }
}

#[derive(Debug)]
struct Options {
    quick: bool,
    write: bool,
    rounds: usize,
    keys: u64,
    parts: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self { quick: false, write: false, rounds: 11, keys: 1_000_000, parts: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--write" => options.write = true,
                "--rounds" => options.rounds = arguments.next().ok_or(USAGE)?.parse()?,
                "--keys" => options.keys = arguments.next().ok_or(USAGE)?.parse()?,
                "in-process" | "http" | "promises" | "scale" | "memory" => options.parts.push(argument.clone()),
                _ => return Err(USAGE.into()),
            }
        }
        if options.rounds == 0 {
            return Err("no rounds, no numbers".into());
        }
        if options.quick {
            options.rounds = 1;
            options.keys = options.keys.min(1_000);
        }
        if options.quick && options.write {
            return Err("the numbers of a quick run say nothing, so they are not written".into());
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    fn measure(&self, subjects: &[Subject]) -> Result<Results, Failure> {
        let shrink = if self.quick { 100 } else { 1 };
        let pinned = if http::can_pin() { "server and load on a processor each" } else { "server and load not pinned" };
        let mut results = Results {
            machine: machine::described(self.rounds, pinned),
            quick: self.quick,
            rounds: self.rounds,
            ..Results::default()
        };
        if self.wants("promises") {
            for subject in subjects {
                results.promises.push(promises::try_out(subject)?);
            }
        }
        if self.wants("in-process") {
            results.in_process = in_process::measure(subjects, self.rounds, shrink)?;
        }
        if self.wants("http") {
            results.http = http::measure(subjects, self.rounds, shrink)?;
        }
        if self.wants("scale") {
            results.scale = scale::measure(self.keys, self.rounds, 10_000 / shrink)?;
        }
        if self.wants("memory") {
            for keys in if self.quick { [1_000, 2_000] } else { [100_000, 1_000_000] } {
                results.memory.extend(memory(keys)?);
            }
        }
        Ok(results)
    }

    fn save(&self, results: &Results) -> Result<(), Failure> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // A run of some parts renews their tables, and leaves the files that hold the whole run alone.
        let whole = self.write && self.parts.is_empty();
        let folder = if whole { root.join("benches") } else { env::temp_dir().join("idem-benches") };
        fs::create_dir_all(&folder)?;
        let (numbers, picture) = (folder.join("results.json"), folder.join("chart.svg"));
        fs::write(&numbers, serde_json::to_string(results)? + "\n")?;
        fs::write(&picture, chart::draw(results))?;
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

/// Runs the program beside this one that counts bytes; nothing if it was not built.
fn memory(keys: u64) -> Result<Option<Memory>, Failure> {
    let program: PathBuf = env::current_exe()?.with_file_name("memory");
    if !program.exists() {
        eprintln!("the part `memory` is left out: {} is not built; scripts/bench builds it", program.display());
        return Ok(None);
    }
    let output = Command::new(program).arg(keys.to_string()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}
