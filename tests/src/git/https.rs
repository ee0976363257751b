//! An https server that runs `git http-backend`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use super::run;
use crate::Namespace;

const BACKEND: &str = "/usr/lib/git-core/git-http-backend";

/// What the server does to a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    Nothing,
    /// One bit of it is another one.
    Flip,
    /// Every request is redirected to another host.
    Redirect,
}

/// A server of all repositories below a folder, on 127.0.0.1 in a namespace.
#[derive(Debug)]
pub struct Https {
    folder: TempDir,
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Without it nobody is served.
    token: Option<String>,
    tamper: AtomicU8,
    /// A line for each request: status, path and the token that came with it.
    requests: Mutex<Vec<String>>,
}

impl Https {
    pub fn start(namespace: &Namespace, root: &Path, token: Option<&str>) -> Result<Self> {
        ensure!(Path::new(BACKEND).exists(), "{BACKEND} is missing: install git");
        let folder = TempDir::new()?;
        certificates(folder.path())?;
        let at = |name: &str| folder.path().join(name);
        let chain = vec![CertificateDer::from_pem_file(at("server.pem"))?];
        let key = PrivateKeyDer::from_pem_file(at("server.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let config = Arc::new(config);
        let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            token: token.map(str::to_owned),
            tamper: AtomicU8::new(0),
            requests: Mutex::default(),
        });
        let its_shared = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (config, shared) = (Arc::clone(&config), Arc::clone(&its_shared));
                thread::spawn(move || {
                    let _ = client.set_read_timeout(Some(Duration::from_secs(10)));
                    // A client that goes away or does not trust us is no error of the server.
                    let _ = serve(client, config, &shared);
                });
            }
        });
        Ok(Self { folder, port, shared })
    }

    /// `ca.pem`, which the server's certificate leads to, or `other.pem`, which it does not.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn tamper(&self, tamper: Tamper) {
        self.shared.tamper.store(tamper as u8, Ordering::SeqCst);
    }

    /// A line for each request so far: `STATUS PATH TOKEN`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().map(|requests| requests.clone()).unwrap_or_default()
    }
}

fn serve(client: TcpStream, config: Arc<ServerConfig>, shared: &Shared) -> Result<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, client));
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().context("a method")?.to_owned(), words.next().context("a target")?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let header =
        |name: &str| headers.iter().find(|(n, _)| n == name).map_or_else(String::new, |(_, value)| value.clone());
    let body = if header("transfer-encoding") == "chunked" {
        read_chunks(&mut stream)?
    } else {
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        stream.read_exact(&mut body)?;
        body
    };
    let given = header("authorization").strip_prefix("Basic ").map(decode);
    let given = given.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, token)| token.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let refused = shared.token.is_some() && shared.token != given;
    let status = if refused { 401 } else { 200 };
    if let Ok(mut requests) = shared.requests.lock() {
        requests.push(format!("{status} {path} {}", given.as_deref().unwrap_or("-")));
    }
    let tamper = shared.tamper.load(Ordering::SeqCst);
    let mut out = stream.into_inner();
    if tamper == Tamper::Redirect as u8 {
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example{target}\r\n");
        out.write_all(format!("{answer}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())?;
    } else if refused {
        let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\n";
        out.write_all(format!("{answer}Connection: close\r\n\r\n").as_bytes())?;
    } else {
        let mut answer = backend(shared, &method, path, query, &header, &body)?;
        if tamper == Tamper::Flip as u8 && path.ends_with("git-upload-pack") {
            let pack = answer.windows(4).position(|w| w == b"PACK");
            if let Some(bit) = pack.and_then(|pack| answer.get_mut(pack + 24)) {
                *bit ^= 0x10;
            }
        }
        out.write_all(&answer)?;
    }
    out.conn.send_close_notify();
    out.flush()?;
    Ok(())
}

/// Runs the CGI program; gives the whole answer.
fn backend(
    shared: &Shared,
    method: &str,
    path: &str,
    query: &str,
    header: &dyn Fn(&str) -> String,
    body: &[u8],
) -> Result<Vec<u8>> {
    let mut command = Command::new(BACKEND);
    command
        .env("GIT_PROJECT_ROOT", &shared.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("CONTENT_LENGTH", body.len().to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let body = body.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&body));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    let end = output.stdout.windows(4).position(|w| w == b"\r\n\r\n").context("the end of the CGI's headers")?;
    let head = String::from_utf8_lossy(&output.stdout[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let mut answer = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for line in head.lines().filter(|line| !line.starts_with("Status:")) {
        answer.extend(format!("{line}\r\n").into_bytes());
    }
    answer
        .extend(format!("Content-Length: {}\r\nConnection: close\r\n\r\n", output.stdout.len() - end - 4).into_bytes());
    answer.extend(&output.stdout[end + 4..]);
    Ok(answer)
}

fn read_chunks(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16)?;
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk)?;
        if length == 0 {
            return Ok(body);
        }
        body.extend(&chunk[..length]);
    }
}

fn decode(text: &str) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.chars().filter_map(|c| DIGITS.find(c)) {
        bits = bits << 6 | u32::try_from(digit).unwrap_or(0);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count).to_le_bytes()[0]);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes a certificate authority, a server certificate of it, and another authority.
fn certificates(folder: &Path) -> Result<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |arguments: &[&str]| run(Command::new("openssl").current_dir(folder).args(arguments)).map(drop);
    for authority in ["ca", "other"] {
        let (key_file, file) = (format!("{authority}.key"), format!("{authority}.pem"));
        let subject = format!("/CN=test {authority}");
        let rest = ["-days", "30", "-subj", &subject, "-keyout", &key_file, "-out", &file];
        openssl(&[&["req", "-x509"], key.as_slice(), rest.as_slice()].concat())?;
    }
    let rest = ["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"];
    openssl(&[&["req"], key.as_slice(), rest.as_slice()].concat())?;
    fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "30",
        "-extfile",
        "extensions",
        "-out",
        "server.pem",
    ])
}
