//! Who comes to the address of one session's path: the first that knows its secret is let in.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};

use crate::session::same_secret;

/// Sockets that have not told the secret yet; others wait until one of them is decided.
const UNDECIDED: usize = 64;

/// Time to tell the secret.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first of those who come that knows `secret`; no other holds it up.
///
/// # Errors
/// When nobody can come any more.
pub async fn caller<S: AsyncRead + Unpin + Send + 'static>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    secret: [u8; 32],
) -> io::Result<S> {
    let mut undecided = JoinSet::new();
    loop {
        tokio::select! {
            socket = poll_fn(&mut accept), if undecided.len() < UNDECIDED => {
                let mut socket = socket?;
                undecided.spawn(async move { knows(&mut socket, &secret).await.then_some(socket) });
            }
            Some(decided) = undecided.join_next() => {
                if let Ok(Some(socket)) = decided {
                    return Ok(socket);
                }
            }
        }
    }
}

/// For [`caller`]: processes of this user.
///
/// # Errors
/// Those of the system.
pub fn of_this_user(listener: &UnixListener, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
    let this_user = rustix::process::geteuid().as_raw();
    loop {
        let (stream, _) = ready!(listener.poll_accept(context))?;
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == this_user) {
            return Poll::Ready(Ok(stream));
        }
    }
}

async fn knows(socket: &mut (impl AsyncRead + Unpin), secret: &[u8; 32]) -> bool {
    let mut told = [0; 32];
    matches!(timeout(PATIENCE, socket.read_exact(&mut told)).await, Ok(Ok(_)) if same_secret(&told, secret))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[tokio::test]
    async fn who_does_not_know_the_secret_holds_nobody_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut strangers = Vec::new();
        for at in 0..UNDECIDED - 1 {
            let said = [&[1; 31][..], &[2; 32], b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", &[]][at % 4];
            let mut stranger = TcpStream::connect(addr).await.unwrap();
            stranger.write_all(said).await.unwrap();
            strangers.push(stranger);
        }
        // One that goes at once.
        drop(TcpStream::connect(addr).await.unwrap());
        let mut known = TcpStream::connect(addr).await.unwrap();
        known.write_all(&[1; 32]).await.unwrap();
        let accept = |context: &mut Context<'_>| listener.poll_accept(context).map_ok(|(socket, _)| socket);
        let accepted = timeout(Duration::from_secs(15), caller(accept, [1; 32])).await;
        let accepted = accepted.expect("one stranger after the other was waited for").unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), known.local_addr().unwrap());
    }
}
