//! A TCP proxy that spoils connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::Namespace;

/// What becomes of the bytes that a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    Nothing,
    /// The connection is cut after so many bytes.
    Cut(u64),
    /// After so many bytes nothing comes any more, and the connection stays.
    Stall(u64),
    /// After so many bytes one byte comes each 20 ms.
    Drip(u64),
}

/// A proxy in front of a port of the same namespace.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    spoil: Arc<(AtomicU64, AtomicU64)>,
    ended: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Proxy {
    pub fn start(namespace: &Namespace, server: u16) -> Result<Self> {
        let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        let spoil = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let ended = Arc::new(AtomicBool::new(false));
        let (its_spoil, its_ended) = (Arc::clone(&spoil), Arc::clone(&ended));
        namespace.enter(move || {
            // The thread is started inside, so the connections that it makes are inside, too.
            thread::spawn(move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if its_ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                    let spoil = Arc::clone(&its_spoil);
                    let (Ok(client_reads), Ok(upstream_reads)) = (client.try_clone(), upstream.try_clone()) else {
                        continue;
                    };
                    thread::spawn(move || forward(client_reads, upstream, || Spoil::Nothing));
                    thread::spawn(move || forward(upstream_reads, client, || load(&spoil)));
                }
            });
        })?;
        Ok(Self { port: address.port(), spoil, ended, address })
    }

    pub fn set(&self, spoil: Spoil) {
        let (kind, bytes) = match spoil {
            Spoil::Nothing => (0, 0),
            Spoil::Cut(bytes) => (1, bytes),
            Spoil::Stall(bytes) => (2, bytes),
            Spoil::Drip(bytes) => (3, bytes),
        };
        self.spoil.1.store(bytes, Ordering::SeqCst);
        self.spoil.0.store(kind, Ordering::SeqCst);
    }
}

fn load(spoil: &(AtomicU64, AtomicU64)) -> Spoil {
    let bytes = spoil.1.load(Ordering::SeqCst);
    match spoil.0.load(Ordering::SeqCst) {
        1 => Spoil::Cut(bytes),
        2 => Spoil::Stall(bytes),
        3 => Spoil::Drip(bytes),
        _ => Spoil::Nothing,
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, spoil: impl Fn() -> Spoil) {
    let mut passed = 0_u64;
    let mut buffer = [0; 4096];
    loop {
        let spoil = spoil();
        let limit = match spoil {
            Spoil::Nothing => buffer.len(),
            Spoil::Cut(at) | Spoil::Stall(at) | Spoil::Drip(at) => {
                let left = usize::try_from(at.saturating_sub(passed)).unwrap_or(buffer.len()).min(buffer.len());
                match (left, spoil) {
                    (0, Spoil::Cut(_)) => break,
                    (0, Spoil::Stall(_)) => {
                        // Until the client has gone away.
                        let _ = to.set_read_timeout(Some(Duration::from_secs(30)));
                        let _ = to.peek(&mut [0]);
                        thread::sleep(Duration::from_secs(10));
                        break;
                    }
                    (0, _) => {
                        thread::sleep(Duration::from_millis(20));
                        1
                    }
                    (left, _) => left,
                }
            }
        };
        match from.read(&mut buffer[..limit]) {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                passed += read as u64;
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener where it can be reached; elsewhere its thread ends with the process.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(10));
    }
}
