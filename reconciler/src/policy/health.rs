//! Health checks of a service's backends: what tells that one serves, and how often it is tried.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults};
use super::document::{self, Protocol};
use super::quantity::duration_ms;
use super::schema;
use super::service_policy::{Backend, ServicePort};
use super::yaml::{Node, Step};

/// How the backends of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthChecks {
    pub check: HealthCheck,
    /// From the begin of one check of a backend to that of its next one.
    pub interval: Duration,
    /// How long one check may take; not longer than `interval`.
    pub timeout: Duration,
    /// Checks in a row that a backend which was unhealthy must pass.
    pub rise: u8,
    /// Checks in a row that one which was healthy must fail.
    pub fall: u8,
    pub min_healthy: MinHealthy,
    /// Of slow backends: what they keep at least of the new flows that their weights give them, in percent, 1 to 99. `None`: latency
    /// changes nothing.
    pub min_share: Option<u8>,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HealthCheck {
    /// A connection is made.
    Tcp { port: Option<u16> },
    /// A GET is answered with this status, or with any from 200 to 399.
    Http { tls: bool, path: String, port: Option<u16>, host: Option<String>, status: Option<u16> },
    /// The program that the node's `healthCommands` have by this name exits with 0.
    Command { name: String, port: Option<u16> },
}

/// With fewer healthy backends than this, all are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MinHealthy {
    Count(u16),
    /// Of those that are not drained, rounded up.
    Percent(u8),
}

impl MinHealthy {
    /// How many of `backends` that are.
    pub fn of(self, backends: usize) -> usize {
        match self {
            Self::Count(count) => count.into(),
            Self::Percent(percent) => (backends * usize::from(percent)).div_ceil(100),
        }
    }
}

impl std::fmt::Display for MinHealthy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// In words, such as `http /health every 2s within 1s, rise 2, fall 2`.
impl std::fmt::Display for HealthChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let on = |port: &Option<u16>| port.map_or_else(String::new, |port| format!(" on port {port}"));
        match &self.check {
            HealthCheck::Tcp { port } => write!(f, "tcp{}", on(port))?,
            HealthCheck::Http { tls, path, port, host, status } => {
                let host = host.as_ref().map_or_else(String::new, |host| format!(" of {host}"));
                let status = status.map_or_else(String::new, |status| format!(" with {status}"));
                write!(f, "{} {path}{host}{}{status}", if *tls { "https" } else { "http" }, on(port))?;
            }
            HealthCheck::Command { name, port } => write!(f, "command {name}{}", on(port))?,
        }
        write!(f, " every {:?} within {:?}, rise {}, fall {}", self.interval, self.timeout, self.rise, self.fall)?;
        if self.min_healthy != MinHealthy::Count(0) {
            write!(f, ", min healthy {}", self.min_healthy)?;
        }
        if let Some(share) = self.min_share {
            write!(f, ", adaptive down to {share}%")?;
        }
        Ok(())
    }
}

impl HealthChecks {
    /// As an image holds it: the same bytes for the same checks.
    pub fn text(&self) -> String {
        let (kind, mut check) = match &self.check {
            HealthCheck::Tcp { port } => ("tcp", json!({ "port": port })),
            HealthCheck::Http { tls, path, port, host, status } => (
                if *tls { "https" } else { "http" },
                json!({"path": path, "port": port, "host": host, "status": status}),
            ),
            HealthCheck::Command { name, port } => ("command", json!({"name": name, "port": port})),
        };
        check["kind"] = kind.into();
        check["interval_ms"] = ms(self.interval);
        check["timeout_ms"] = ms(self.timeout);
        check["rise"] = self.rise.into();
        check["fall"] = self.fall.into();
        check["min_healthy"] = match self.min_healthy {
            MinHealthy::Count(count) => count.into(),
            MinHealthy::Percent(percent) => format!("{percent}%").into(),
        };
        if let Some(share) = self.min_share {
            check["min_share"] = share.into();
        }
        check.to_string()
    }

    /// What [`Self::text`] has written; `None`: it has not.
    pub fn from_text(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let words = |key: &str| value[key].as_str().map(str::to_owned);
        let number = |key: &str| value[key].as_u64().and_then(|number| u16::try_from(number).ok());
        let small = |key: &str| number(key).and_then(|number| u8::try_from(number).ok());
        let check = match value["kind"].as_str()? {
            "tcp" => HealthCheck::Tcp { port: number("port") },
            kind @ ("http" | "https") => HealthCheck::Http {
                tls: kind == "https",
                path: words("path")?,
                port: number("port"),
                host: words("host"),
                status: number("status"),
            },
            "command" => HealthCheck::Command { name: words("name")?, port: number("port") },
            _ => return None,
        };
        let min_healthy = match words("min_healthy") {
            Some(percent) => MinHealthy::Percent(percent.strip_suffix('%')?.parse().ok()?),
            None => MinHealthy::Count(number("min_healthy")?),
        };
        let time = |key: &str| value[key].as_u64().map(Duration::from_millis);
        let (interval, timeout) = (time("interval_ms")?, time("timeout_ms")?);
        let (rise, fall, min_share) = (small("rise")?, small("fall")?, small("min_share"));
        Some(Self { check, interval, timeout, rise, fall, min_healthy, min_share })
    }

    /// Where a backend is checked: at the port of the check, or at its own, or at that which the service's first TCP port means;
    /// what a command is told may be a port of UDP, too.
    pub fn address(&self, address: IpAddr, own: Option<u16>, ports: &[ServicePort]) -> Option<SocketAddr> {
        let (HealthCheck::Tcp { port } | HealthCheck::Http { port, .. } | HealthCheck::Command { port, .. }) =
            &self.check;
        let of_service = || {
            let any = ports.first().filter(|_| matches!(self.check, HealthCheck::Command { .. }));
            let first = ports.iter().find(|port| port.protocol == Protocol::Tcp).or(any)?;
            Some(first.target.unwrap_or(first.first))
        };
        Some(SocketAddr::new(address, port.or(own).or_else(of_service)?))
    }
}

fn ms(duration: Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}

const INTERVAL_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
const TIMEOUT_MS_MIN: u64 = 10;

/// The document being read.
struct Reader<'r> {
    file: &'r str,
    root: &'r Node,
    faults: &'r mut Faults,
}

/// Reads `spec.health`. Where it cannot be read there is an error, and no `Policy` comes of it.
pub(super) fn read_health(
    file: &str,
    root: &Node,
    faults: &mut Faults,
    written: &document::Health,
    backends: &[Backend],
    ports: &[ServicePort],
) -> Option<HealthChecks> {
    let mut reader = Reader { file, root, faults };
    let check = reader.check(written);
    let interval = reader.milliseconds("interval", &written.interval);
    let timeout = reader.milliseconds("timeout", &written.timeout);
    if let Some(interval) = interval.filter(|interval| !INTERVAL_MS.contains(interval)) {
        let message = format!("a backend is checked every 100ms to 1h, not every {}", in_words(interval));
        reader.fault(Code::HealthTimes, &["interval"], message);
    } else if let (Some(interval), Some(timeout)) = (interval, timeout)
        && !(TIMEOUT_MS_MIN..=interval).contains(&timeout)
    {
        let message = format!(
            "a check may take 10ms up to the interval, which is {}, not {}",
            in_words(interval),
            in_words(timeout)
        );
        reader.fault(Code::HealthTimes, &["timeout"], message);
    }
    let min_healthy = reader.min_healthy(written.min_healthy.as_ref(), backends);
    let checks = HealthChecks {
        check: check?,
        interval: Duration::from_millis(interval?),
        timeout: Duration::from_millis(timeout?),
        rise: written.rise,
        fall: written.fall,
        min_healthy: min_healthy?,
        // The schema has checked it.
        min_share: written.adaptive.as_ref().and_then(|a| a.min_share.strip_suffix('%')?.parse().ok()),
    };
    if let Some(backend) = backends.iter().find(|b| checks.address(b.address, b.port, ports).is_none()) {
        let message = format!("{backend} has no TCP port to be checked at: the service has none");
        reader.fault(Code::HealthPort, &[], message);
        return None;
    }
    Some(checks)
}

fn in_words(ms: u64) -> String {
    format!("{:?}", Duration::from_millis(ms))
}

impl Reader<'_> {
    fn fault(&mut self, code: Code, at: &[&'static str], message: String) {
        let path: Vec<Step> = ["spec", "health"].iter().chain(at).map(|key| Step::Key(key)).collect();
        self.faults.push(Diagnostic::new(code, self.file, Some(self.root.place(&path)), message));
    }

    fn milliseconds(&mut self, key: &'static str, text: &str) -> Option<u64> {
        let ms = duration_ms(text);
        if ms.is_none() {
            let message = format!("`{}` is not a duration such as 500ms or 2s", schema::shorten(text));
            self.fault(Code::MalformedValue, &[key], message);
        }
        ms
    }

    fn check(&mut self, written: &document::Health) -> Option<HealthCheck> {
        let http = |tls: bool, http: &document::HttpHealth| HealthCheck::Http {
            tls,
            path: http.path.clone(),
            port: http.port,
            host: http.host.clone(),
            status: http.status,
        };
        match (&written.tcp, &written.http, &written.https, &written.command) {
            (Some(tcp), None, None, None) => Some(HealthCheck::Tcp { port: tcp.port }),
            (None, Some(plain), None, None) => Some(http(false, plain)),
            (None, None, Some(secure), None) => Some(http(true, secure)),
            (None, None, None, Some(command)) => {
                Some(HealthCheck::Command { name: command.name.clone(), port: command.port })
            }
            _ => {
                self.fault(
                    Code::HealthCheck,
                    &[],
                    "health needs exactly one of tcp, http, https and command".to_owned(),
                );
                None
            }
        }
    }

    fn min_healthy(&mut self, written: Option<&document::MinHealthy>, backends: &[Backend]) -> Option<MinHealthy> {
        let min = match written {
            None => return Some(MinHealthy::Count(0)),
            Some(document::MinHealthy::Count(count)) => Some(MinHealthy::Count(*count)),
            Some(document::MinHealthy::Text(text)) => {
                let percent = text.strip_suffix('%').and_then(|percent| percent.parse().ok());
                percent.filter(|percent| *percent <= 100).map(MinHealthy::Percent)
            }
        };
        let usable = backends.iter().filter(|backend| backend.weight > 0).count();
        let Some(min) = min else {
            let message = "it is a number of backends, or a share of them from \"0%\" to \"100%\"".to_owned();
            self.fault(Code::MinHealthy, &["minHealthy"], message);
            return None;
        };
        if min.of(usable) > usable {
            let message = format!("{min} backends cannot be healthy: {usable} take new flows");
            self.fault(Code::MinHealthy, &["minHealthy"], message);
            return None;
        }
        Some(min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_come_back_from_their_text() {
        let http = |tls, host: Option<&str>, status| HealthCheck::Http {
            tls,
            path: "/health?a=\"b\"".to_owned(),
            port: Some(8080),
            host: host.map(str::to_owned),
            status,
        };
        let all = [
            HealthCheck::Tcp { port: None },
            HealthCheck::Tcp { port: Some(1) },
            http(false, None, None),
            http(true, Some("api.example.net"), Some(204)),
            HealthCheck::Command { name: "api-ready".to_owned(), port: None },
            HealthCheck::Command { name: "api-ready".to_owned(), port: Some(9) },
        ];
        for check in all {
            for (min_healthy, min_share) in
                [(MinHealthy::Count(0), None), (MinHealthy::Count(3), Some(1)), (MinHealthy::Percent(50), Some(99))]
            {
                let (check, interval, timeout) = (check.clone(), Duration::from_secs(2), Duration::from_millis(10));
                let checks = HealthChecks { check, interval, timeout, rise: 3, fall: 1, min_healthy, min_share };
                assert_eq!(HealthChecks::from_text(&checks.text()), Some(checks));
            }
        }
        for bad in ["", "{}", "[]", r#"{"kind": "icmp"}"#] {
            assert_eq!(HealthChecks::from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_share_of_backends_is_rounded_up() {
        assert_eq!([0, 1, 50, 100].map(|percent| MinHealthy::Percent(percent).of(3)), [0, 1, 2, 3]);
        assert_eq!(MinHealthy::Count(2).of(3), 2);
    }
}
