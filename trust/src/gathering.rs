//! A stream whose writes wait for one turn of the runtime.
//!
//! The tokens of a step are told by as many tasks, one after the other, and a
//! connection that writes when the first of them has spoken writes, wakes its
//! peer and is read once for each. One that goes to the end of the line first
//! finds what all of them have said, and where nobody else is in line it has
//! waited for nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Wraps a stream of HTTP/2, which takes in more while a write waits; reads are as before.
pub(crate) struct Gathering<S> {
    stream: S,
    /// Whether this write has waited.
    has_waited: bool,
}

// === impl Gathering ===

impl<S> Gathering<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, has_waited: false }
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Waits for a turn, if the write that begins has not.
    fn wait(&mut self, cx: &Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wait(cx));
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wait(cx));
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// All was written: the next write begins.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_waited = false;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_write_waits_for_those_in_line_and_the_next_one_too() {
        let (writer, mut reader) = duplex(16);
        let mut writer = Gathering::new(writer);
        for said in [b"one", b"two"] {
            let mut writing = Box::pin(async {
                writer.write_all(said).await?;
                writer.flush().await
            });
            assert!(poll!(&mut writing).is_pending());
            let mut read = [0; 3];
            assert!(poll!(&mut Box::pin(reader.read_exact(&mut read))).is_pending());
            writing.await.unwrap();
            reader.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, said);
        }
    }

    #[tokio::test]
    async fn a_long_write_waits_once() {
        let (writer, mut reader) = duplex(1);
        let mut writer = Gathering::new(writer);
        let mut writing = Box::pin(writer.write_all(b"abc"));
        assert!(poll!(&mut writing).is_pending());
        assert!(poll!(&mut writing).is_pending());
        for byte in *b"abc" {
            assert_eq!(reader.read_u8().await.unwrap(), byte);
            let _ = poll!(&mut writing);
        }
        assert!(poll!(&mut Box::pin(reader.read_u8())).is_pending());
    }
}
