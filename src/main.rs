//! The binary: parse, run, report.

use std::process::ExitCode;

use baton::{
    args::{BenchKind, Certs, Cli, Command, Key, Model},
    telemetry::LogFormat,
};
use clap::Parser;
use mimalloc::MiMalloc;

/// A request in front of the engine makes hundreds of small allocations.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = matches!(
        cli.command,
        Command::Demo(_)
            | Command::Chat(_)
            | Command::Batch(_)
            | Command::Bench(_)
            | Command::Simulate(_)
            | Command::Plan(_)
            | Command::Doctor(_)
            | Command::Admin(_)
            | Command::Probe(_)
    );
    let format = match &cli.command {
        Command::Serve(serve) => serve.log_format,
        _ => LogFormat::Text,
    };
    let outcome = baton::telemetry::init(quiet, format).and_then(|()| run(cli.command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            baton::terminal::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match command {
        Command::Demo(demo) => runtime()?.block_on(baton::demo::run(&demo)),
        Command::Serve(serve) => match baton::serve::settle(&serve)? {
            Some(config) => runtime()?.block_on(baton::serve::run(config)),
            None => Ok(()),
        },
        Command::Chat(chat) => runtime()?.block_on(baton::chat::run(&chat)),
        Command::Batch(args) => runtime()?.block_on(baton::batch::run(&args)),
        Command::Bench(bench) => match bench.what {
            BenchKind::Engine(args) => baton::bench::engine::run(&args),
            BenchKind::Transfer(args) => baton::bench::transfer::run(&args),
            BenchKind::Handoff(args) => runtime()?.block_on(baton::bench::handoff::run(&args)),
            BenchKind::Start(args) => baton::bench::start::run(&args),
            BenchKind::Http(args) => baton::bench::http::run(&args),
            BenchKind::Serve(args) => baton::bench::serve::run(&args),
            BenchKind::Slo(args) => baton::bench::slo::run(&args),
            BenchKind::Server(args) => baton::bench::server::run(&args),
            BenchKind::Client(args) => baton::bench::client::run(&args),
            BenchKind::Simulated(args) => baton::bench::simulated::run(&args),
            BenchKind::PrefixIndex(args) => baton::bench::prefix_index::run(&args),
            BenchKind::Budgets(args) => baton::bench::budgets::run(&args),
            BenchKind::Grammar(args) => baton::bench::grammar::run(&args),
            BenchKind::Flip(args) => baton::bench::flip::run(&args),
            BenchKind::Overload(args) => baton::bench::overload::run(&args),
            BenchKind::Front(args) => baton::bench::front::run(&args),
            BenchKind::Routing(args) => baton::bench::routing::run(&args),
            BenchKind::Row(args) => baton::bench::row::run(&args),
            BenchKind::Check => baton::bench::check(&runtime()?),
        },
        Command::Simulate(args) => baton::simulate::run(&args),
        Command::Plan(args) => baton::plan::run(&args),
        Command::Doctor(doctor) => runtime()?.block_on(baton::doctor::run(&doctor)),
        Command::Admin(admin) => runtime()?.block_on(baton::admin::run(&admin)),
        Command::Certs(Certs::Init(args)) => baton::certs::init(&args),
        Command::Certs(Certs::Renew(args)) => baton::certs::renew(&args),
        Command::Key(Key::New(args)) => baton::key::new(&args),
        Command::Model(Model::Pull { name }) => baton::pull::run(&name),
        Command::Model(Model::List) => baton::pull::list(),
        Command::Probe(args) => runtime()?.block_on(baton::client::probe(&args)),
        Command::Completions { shell } => baton::manual::completions(shell),
        Command::Man { dir } => baton::manual::pages(&dir),
    }
}
