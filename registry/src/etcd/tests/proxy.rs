//! A TCP proxy that can cut its connections.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Forwards loopback connections until cut.
pub(super) struct Proxy {
    target: SocketAddr,
    listen: SocketAddr,
    tasks: JoinSet<()>,
}

impl Proxy {
    pub(super) fn start(target: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut proxy = Self { target, listen: listener.local_addr().unwrap(), tasks: JoinSet::new() };
        proxy.serve(listener);
        proxy
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Ends every connection and refuses new ones.
    pub(super) async fn cut(&mut self) {
        self.tasks.shutdown().await;
    }

    pub(super) fn mend(&mut self) {
        self.serve(std::net::TcpListener::bind(self.listen).unwrap());
    }

    fn serve(&mut self, listener: std::net::TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let (listener, target) = (TcpListener::from_std(listener).unwrap(), self.target);
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut inward, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut outward) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut inward, &mut outward).await;
                    }
                });
            }
        });
    }
}
