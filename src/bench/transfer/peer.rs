//! The receiving process of the bench: started by the sending one, told what
//! to do in lines of JSON.

use std::{
    io::{BufRead, BufReader, Lines, Write, stdin, stdout},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::runtime::Runtime;

use super::{
    Run,
    road::{Ends, Job, Memory, POOL_BYTES, Road, cpu_seconds, read_spinning, write_spinning},
    shared::Shared,
};

/// The other process; it ends with this value.
pub struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    runtime: Runtime,
}

#[derive(Serialize, Deserialize)]
struct Order {
    job: Job,
    addr: String,
    secret: [u8; 32],
}

/// Where the way back begins.
#[derive(Serialize, Deserialize)]
struct Back(String);

#[derive(Serialize, Deserialize)]
struct Spent {
    cpu_seconds: f64,
}

// === impl Peer ===

impl Peer {
    /// Starts this program once more, to receive on the second of these cards, if there are any.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(cards: &[usize]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let command =
            command.args(["bench", "transfer", "--peer"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if !cards.is_empty() {
            let cards = cards.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            command.args(["--cards", &cards]);
        }
        let mut child = command.spawn().context("cannot start the other process")?;
        let orders = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Self { child, orders, answers, runtime: runtime()? })
    }

    /// Does a job together with the other process.
    ///
    /// # Errors
    /// When a path cannot be had, or breaks.
    pub(super) fn run(&mut self, memory: &Memory, job: &Job) -> Result<Run> {
        match &job.road {
            Road::Frames(name) => self.frames(name, memory, job),
            Road::Stream => self.stream(memory, job),
            Road::Shared => self.shared(memory, job),
            Road::Copy => copy(memory, job),
        }
    }

    fn frames(&mut self, name: &str, memory: &Memory, job: &Job) -> Result<Run> {
        let mut secret = [0; 32];
        secret.fill_with(|| fastrand::u8(..));
        let terms = job.terms(name, (secret, memory.card))?;
        let (_transports, addr, listening) = self.runtime.block_on(Job::listen(name, &terms))?;
        self.order(&Order { job: job.clone(), addr, secret })?;
        let Back(back) = self.answer()?;
        let both = async {
            let receiver = Job::connect(name, &terms, back).await?;
            anyhow::Ok((listening.rendezvous.accept().await?, receiver))
        };
        let (sender, receiver) = self.runtime.block_on(both)?;
        let (mut ends, mut place) = (Ends::new((sender, receiver), memory.card)?, 0);
        let run = Run::of(job.rounds, job.bytes(), || {
            place += job.at_once;
            ends.post(memory, job, place)
        });
        self.with_spent(run?)
    }

    fn stream(&mut self, memory: &Memory, job: &Job) -> Result<Run> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?.to_string();
        self.order(&Order { job: job.clone(), addr, secret: [0; 32] })?;
        let mut socket = listener.accept()?.0;
        prepare(&socket)?;
        let mut place = 0;
        let run = Run::of(job.rounds, job.bytes(), || {
            for _ in 0..job.at_once {
                place = (place + job.block) % POOL_BYTES;
                write_spinning(&mut socket, &memory.plain[place..place + job.block])?;
            }
            Ok(read_spinning(&mut socket, &mut [0])?)
        });
        self.with_spent(run?)
    }

    fn shared(&mut self, memory: &Memory, job: &Job) -> Result<Run> {
        let (mut shared, _file, addr) = Shared::create()?;
        self.order(&Order { job: job.clone(), addr, secret: [0; 32] })?;
        let mut place = 0;
        let run = Run::of(job.rounds, job.bytes(), || {
            for _ in 0..job.at_once {
                place = (place + job.block) % POOL_BYTES;
                shared.write(&memory.plain[place..place + job.block]);
            }
            shared.drained();
            Ok(())
        });
        self.with_spent(run?)
    }

    fn with_spent(&mut self, mut run: Run) -> Result<Run> {
        run.cpu_seconds += self.answer::<Spent>()?.cpu_seconds;
        Ok(run)
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        Ok(writeln!(self.orders, "{}", serde_json::to_string(order)?)?)
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.answers.next().context("the other process ended")??;
        serde_json::from_str(&line).with_context(|| format!("unexpected answer {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy(memory: &Memory, job: &Job) -> Result<Run> {
    // Not zeros: their pages would be touched for the first time while the clock runs.
    let mut to = vec![2_u8; POOL_BYTES];
    let mut place = 0;
    Run::of(job.rounds, job.bytes(), || {
        for _ in 0..job.at_once {
            place = (place + job.block) % POOL_BYTES;
            to[place..place + job.block].copy_from_slice(&memory.plain[place..place + job.block]);
        }
        std::hint::black_box(&mut to);
        Ok(())
    })
}

fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The other process: does jobs until its orders end.
///
/// # Errors
/// When a path breaks.
pub fn serve(card: Option<usize>) -> Result<()> {
    let (runtime, mut memory) = (runtime()?, Memory::new(card)?);
    for line in stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let spent = match order.job.road.clone() {
            Road::Frames(name) => receive(&runtime, &memory, &name, order)?,
            Road::Stream => drain(&mut memory.plain, &order)?,
            Road::Shared => copy_out(&mut memory.plain, &order)?,
            Road::Copy => continue,
        };
        tell(&spent)?;
    }
    Ok(())
}

fn tell(answer: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    Ok(out.flush()?)
}

fn receive(runtime: &Runtime, memory: &Memory, name: &str, order: Order) -> Result<Spent> {
    let Order { job, addr, secret } = order;
    let terms = job.terms(name, (secret, memory.card))?;
    let (_transports, back, listening) = runtime.block_on(Job::listen(name, &terms))?;
    tell(&Back(back))?;
    let both = async {
        let sender = listening.rendezvous.accept().await?;
        anyhow::Ok((sender, Job::connect(name, &terms, addr).await?))
    };
    let (sender, receiver) = runtime.block_on(both)?;
    let mut ends = Ends::new((sender, receiver), memory.card)?;
    ends.take(memory, &job)?;
    let cpu = cpu_seconds();
    for _ in 0..job.rounds {
        ends.take(memory, &job)?;
    }
    Ok(Spent { cpu_seconds: cpu_seconds() - cpu })
}

fn drain(memory: &mut [u8], order: &Order) -> Result<Spent> {
    let (job, mut socket) = (&order.job, TcpStream::connect(&order.addr)?);
    prepare(&socket)?;
    let mut place = 0;
    let mut cpu = cpu_seconds();
    for round in 0..=job.rounds {
        if round == 1 {
            cpu = cpu_seconds();
        }
        for _ in 0..job.at_once {
            place = (place + job.block) % POOL_BYTES;
            read_spinning(&mut socket, &mut memory[place..place + job.block])?;
        }
        write_spinning(&mut socket, &[1])?;
    }
    Ok(Spent { cpu_seconds: cpu_seconds() - cpu })
}

fn copy_out(memory: &mut [u8], order: &Order) -> Result<Spent> {
    let (job, mut shared) = (&order.job, Shared::open(&order.addr)?);
    let (mut place, mut cpu) = (0, cpu_seconds());
    for round in 0..=job.rounds {
        if round == 1 {
            cpu = cpu_seconds();
        }
        for _ in 0..job.at_once {
            place = (place + job.block) % POOL_BYTES;
            shared.read(&mut memory[place..place + job.block]);
        }
    }
    Ok(Spent { cpu_seconds: cpu_seconds() - cpu })
}
