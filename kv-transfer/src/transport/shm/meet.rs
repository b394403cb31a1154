//! How a ring's memory comes to its receiver: over a Unix socket whose name
//! only the control stream tells, to a process of the same user that knows the
//! session's secret. The socket is gone before the first frame.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
};

use super::map::{self, Map};
use crate::{
    hex,
    transport::{
        FrameSender, Link, PathError,
        caller::{caller, of_this_user},
        offer::{Rendezvous, Terms},
    },
};

/// A ring whose receiver has not come yet.
pub struct Meeting {
    listener: UnixListener,
    terms: Terms,
}

/// Processes can meet that were started by one user on one boot of one machine
/// and see the same network, to which the sockets' names belong.
pub fn place() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let user = rustix::process::geteuid().as_raw();
    format!("{}/{}/user:{user}", boot.trim(), network.display())
}

/// The receiving side: asks at `addr` for the ring's memory.
///
/// # Errors
/// When nobody is there, or gives something else.
pub async fn join(terms: &Terms, addr: &str) -> Result<Map, PathError> {
    let stream = StdStream::connect_addr(&SocketAddr::from_abstract_name(addr)?)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    stream.write_all(&terms.secret).await?;
    let fd = loop {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || receive(&stream)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => break received?,
        }
    };
    Ok(Map::new(fd)?)
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.next().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
}

fn send(stream: &UnixStream, fd: &OwnedFd) -> io::Result<()> {
    let (fds, mut space) = ([fd.as_fd()], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The socket's buffer is empty: this does not wait.
    sendmsg(stream, &[IoSlice::new(&[1])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

// === impl Meeting ===

impl Meeting {
    /// Listens under a name that nobody can guess.
    ///
    /// # Errors
    /// When the system has no more sockets.
    pub fn new(terms: &Terms) -> Result<(String, Self), PathError> {
        let name = format!("baton-{}", hex(&crate::session::secret()));
        let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        Ok((name, Self { listener: UnixListener::from_std(listener)?, terms: terms.clone() }))
    }

    /// Gives a new ring's memory to the first who knows the secret.
    ///
    /// # Errors
    /// When the system has no more memory or sockets, or whoever knew the secret has left.
    pub async fn ring(&self) -> Result<OwnedFd, PathError> {
        let stream = caller(|context| of_this_user(&self.listener, context), self.terms.secret).await?;
        let fd = map::create()?;
        send(&stream, &fd)?;
        Ok(fd)
    }
}

#[tonic::async_trait]
impl Rendezvous for Meeting {
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        let map = Map::new(self.ring().await?)?;
        Ok(super::sender(map, self.terms.checksum, self.terms.config.stall_timeout()))
    }
}
