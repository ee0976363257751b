//! `POST /hook`: a server says that something was pushed.
//!
//! It is a hint and nothing else: what is posted is read up to its limit to check the signature, and then forgotten. A request
//! that is not signed, not wanted or too large is answered with why not; too many are answered with 429; whoever is slow is
//! hung up on.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::hmac;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::policy::Webhook;

/// GitHub sends 25 MiB at most, but a push event of a policy repo takes some kilobytes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A connection, from its first byte to its answer.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
const HEADERS_TIME_MAX: Duration = Duration::from_secs(5);
const HEADER_BYTES_MAX: usize = 16 << 10;
const CONNECTIONS_MAX: usize = 32;
/// Requests at once, and how often there is room for one more.
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(1);
/// What is read of the secret's file.
const SECRET_BYTES_MAX: u64 = 4096;

/// Listens for pushes; `pushed` is called for every request that is right.
pub(super) struct Listener {
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    pub(super) async fn start(config: &Webhook, pushed: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let hook = Arc::new(Hook {
            secret_file: config.secret_file.clone(),
            bucket: Mutex::new(Bucket::full(Instant::now())),
            pushed: Box::new(pushed),
        });
        tracing::info!(listen = %config.listen, "listening for pushes");
        Ok(Self { task: tokio::spawn(accept(listener, hook)) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, hook: Arc<Hook>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Whoever comes when there is no room waits in the kernel's queue.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let hook = Arc::clone(&hook);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION_TIME_MAX, serve(stream, peer, hook)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for the webhook was not taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, hook: Arc<Hook>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let hook = Arc::clone(&hook);
        async move { Ok::<_, Infallible>(hook.answer(request, peer).await) }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIME_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false);
    // A client that breaks off is no news.
    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
}

struct Hook {
    secret_file: PathBuf,
    bucket: Mutex<Bucket>,
    pushed: Box<dyn Fn() + Send + Sync>,
}

impl Hook {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let (status, words) = match self.judge(request).await {
            Ok(()) => {
                (self.pushed)();
                (StatusCode::ACCEPTED, "looking")
            }
            Err((status, words)) => {
                tracing::warn!(%peer, status = status.as_u16(), "a request to the webhook was refused: {words}");
                (status, words)
            }
        };
        let mut response = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
        *response.status_mut() = status;
        if status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
        }
        response
    }

    async fn judge(&self, request: Request<Incoming>) -> Result<(), (StatusCode, &'static str)> {
        let allowed = self.bucket.lock().is_ok_and(|mut bucket| bucket.take(Instant::now()));
        if !allowed {
            return Err((StatusCode::TOO_MANY_REQUESTS, "too many requests"));
        }
        if request.uri().path() != "/hook" {
            return Err((StatusCode::NOT_FOUND, "there is only /hook"));
        }
        if request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "only POST"));
        }
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err((StatusCode::PAYLOAD_TOO_LARGE, "too large")),
            Err(_) => return Err((StatusCode::BAD_REQUEST, "the body is incomplete")),
        };
        let Ok(secret) = read_secret(&self.secret_file) else {
            tracing::error!(file = %self.secret_file.display(), "the secret of the webhook cannot be read");
            return Err((StatusCode::INTERNAL_SERVER_ERROR, "the secret is not readable"));
        };
        if is_authentic(&head.headers, &body, &secret) {
            Ok(())
        } else {
            Err((StatusCode::FORBIDDEN, "the signature is missing or wrong"))
        }
    }
}

/// The first line of the file; never empty.
fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(SECRET_BYTES_MAX).read_to_end(&mut bytes)?;
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii().to_vec();
    if line.is_empty() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(line) }
}

/// Whether a request is signed as GitHub, Gitea and Forgejo do (HMAC-SHA256 of the body), or carries the secret as GitLab does.
fn is_authentic(headers: &HeaderMap, body: &[u8], secret: &[u8]) -> bool {
    if let Some(signature) = headers.get("x-hub-signature-256") {
        let Some(tag) = signature.as_bytes().strip_prefix(b"sha256=").and_then(unhex) else { return false };
        return hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), body, &tag).is_ok();
    }
    let Some(token) = headers.get("x-gitlab-token") else { return false };
    // MACs are compared in constant time, so the time says nothing about the secret.
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::verify(&key, token.as_bytes(), hmac::sign(&key, secret).as_ref()).is_ok()
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let periods = now.saturating_duration_since(self.filled).as_millis() / REFILL.as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods > 0 {
            self.tokens = self.tokens.saturating_add(periods).min(BURST);
            self.filled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("a value");
        [(hyper::header::HeaderName::from_static(name), value)].into_iter().collect()
    }

    #[test]
    fn a_signature_is_that_of_the_body_with_the_secret() {
        // GitHub's own example: docs.github.com, "Validating webhook deliveries".
        let secret = b"It's a Secret to Everybody";
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let check = |value: &str, body: &[u8], expected: bool| {
            assert_eq!(is_authentic(&headers("x-hub-signature-256", value), body, secret), expected, "{value}");
        };
        check(good, b"Hello, World!", true);
        check(good, b"Hello, World?", false);
        check(&good.replace("sha256=", "sha1="), b"Hello, World!", false);
        check(&good[..good.len() - 2], b"Hello, World!", false);
        check("sha256=", b"Hello, World!", false);
        check("sha256=zz", b"Hello, World!", false);
        check("", b"Hello, World!", false);
    }

    #[test]
    fn a_token_is_the_secret_itself_and_no_header_is_no_right() {
        assert!(is_authentic(&headers("x-gitlab-token", "abc"), b"", b"abc"));
        assert!(!is_authentic(&headers("x-gitlab-token", "ab"), b"", b"abc"));
        assert!(!is_authentic(&HeaderMap::new(), b"", b"abc"));
    }

    #[test]
    fn a_burst_is_taken_and_then_one_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let taken =
            |bucket: &mut Bucket, ms: u64| (0..20).filter(|_| bucket.take(start + Duration::from_millis(ms))).count();
        assert_eq!(taken(&mut bucket, 0), 10);
        assert_eq!(taken(&mut bucket, 900), 0);
        assert_eq!(taken(&mut bucket, 1000), 1);
        assert_eq!(taken(&mut bucket, 4000), 3);
        assert_eq!(taken(&mut bucket, 4_000_000), 10);
    }
}
