//! Connections: how many, how long without a request, how they end.

use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Server;
use super::router::router;

/// Serves `server` on `listener` until `closed`, then finishes what is under way. Connections beyond the limit wait in the
/// system's queue; one on which a request's head takes too long, or none comes, is closed.
pub async fn listen(mut listener: TcpListener, server: Arc<Server>, closed: impl Future<Output = ()> + Send) {
    let max = server.options.max_connections.get();
    let (places, (closing, open)) = (Arc::new(Semaphore::new(max as usize)), watch::channel(()));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(server.options.header_timeout);
    let service = TowerToHyperService::new(router(server));
    let mut closed = pin!(closed);
    loop {
        let next = async {
            // Nobody closes the semaphore.
            let place = places.clone().acquire_owned().await.ok()?;
            Some((Listener::accept(&mut listener).await.0, place))
        };
        let (stream, place) = tokio::select! {
            Some(next) = next => next,
            () = &mut closed => break,
        };
        // Small chunks must leave at once: Nagle's algorithm would hold tokens back.
        drop(stream.set_nodelay(true));
        tokio::spawn(serve(http.clone(), stream, service.clone(), open.clone(), place));
    }
    drop((listener, open));
    closing.send_replace(());
    drop(places.acquire_many(max).await);
}

/// One connection to its end; `open` changes when it must take no more requests.
async fn serve(
    http: http1::Builder,
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    mut open: watch::Receiver<()>,
    place: OwnedSemaphorePermit,
) {
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = open.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
    drop(place);
}
