//! `blockdrop healthcheck`: asks a running server how it is, for where there is no shell and no curl.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::Value;

use super::Failure;
use super::checked::{Checked, Problems};
use super::table::print;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address of the server's admin listener, as `serve` has it; 0.0.0.0 and [::] are asked on the loopback.
    #[arg(long, env = "BLOCKDROP_ADMIN_ADDR", default_value = "127.0.0.1:8081")]
    admin_addr: Checked<SocketAddr>,

    /// Ask whether it is alive (/livez) instead of whether it takes requests (/readyz).
    #[arg(long, env = "BLOCKDROP_LIVE", value_parser = BoolishValueParser::new())]
    live: bool,

    /// Time for the whole answer.
    #[arg(long, env = "BLOCKDROP_TIMEOUT", default_value = "2s")]
    timeout: Checked<humantime::Duration>,
}

/// Bytes of an answer that are read, at most.
const MOST: u64 = 16 << 10;

pub(crate) fn run(options: Options, mut problems: Problems) -> Result<(), Failure> {
    let address = problems.take(
        "--admin-addr",
        "an IP address and a port such as 127.0.0.1:8081",
        options.admin_addr,
        |address| address.port() != 0,
    );
    let fits = |time: &humantime::Duration| (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&**time);
    let timeout = problems.take("--timeout", "a time from 1ms to 1day such as 2s", options.timeout, fits);
    let (address, timeout) = problems.or(address.zip(timeout))?;
    let (address, path) = (reached(address), if options.live { "/livez" } else { "/readyz" });
    let answer = match ask(address, path, *timeout) {
        Ok(answer) => answer,
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            return Err(anyhow::anyhow!("http://{address}{path}: no answer within {timeout}").into());
        }
        Err(error) => return Err(anyhow::anyhow!("http://{address}{path}: no answer: {error}").into()),
    };
    let state = judged(&answer, options.live).map_err(|error| anyhow::anyhow!("http://{address}{path}: {error}"))?;
    print(format_args!("http://{address}{path}: {state}"))?;
    Ok(())
}

/// Where a listener on all of this machine's addresses is reached.
fn reached(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// What comes back to a GET, head and body.
fn ask(address: SocketAddr, path: &str, most: Duration) -> std::io::Result<String> {
    let until = Instant::now() + most;
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(std::io::Error::from(ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, most)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 1024]);
    while (answer.len() as u64) < MOST {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut part)? {
            0 => break,
            read => answer.extend_from_slice(&part[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What a healthy server says of itself; anything else is an error.
fn judged(answer: &str, live: bool) -> anyhow::Result<&'static str> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    let Some(code) = status.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)) else {
        bail!("no answer of a blockdrop server");
    };
    // What else listens at the port may say 200 too.
    let said: Value = serde_json::from_str(body).unwrap_or_default();
    match (code, live) {
        ("200", true) if said["live"] == true => Ok("alive"),
        ("200", false) if said["ready"] == true => Ok("ready"),
        ("503", false) if said["ready"] == false => match said["state"].as_str() {
            Some("no_model") => bail!("not ready: it has no model"),
            state => bail!("not ready: it is {}", state.unwrap_or("in no known state")),
        },
        ("503", true) if said["live"] == false => {
            match (said["busy_seconds"].as_f64(), said["missing_seconds"].as_f64()) {
                (Some(seconds), _) => bail!("not alive: a worker has been at one batch for {seconds:.0} s"),
                (None, Some(seconds)) => {
                    bail!("not alive: the threads that serve have come to nothing new for {seconds:.0} s")
                }
                (None, None) => bail!("not alive"),
            }
        }
        _ => bail!("found status {code}, expected 200 of a blockdrop server"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_the_loopback() {
        for (address, expected) in [
            ("0.0.0.0:8081", "127.0.0.1:8081"),
            ("[::]:8081", "[::1]:8081"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("10.0.0.7:8081", "10.0.0.7:8081"),
            ("[fd00::7]:8081", "[fd00::7]:8081"),
        ] {
            assert_eq!(reached(address.parse().unwrap()), expected.parse().unwrap());
        }
    }

    #[test]
    fn only_a_server_that_says_so_is_healthy() {
        let answer = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nserver: x\r\n\r\n{body}");
        let said = |answer: &str, live| judged(answer, live).map_err(|error| error.to_string());
        assert_eq!(said(&answer("200 OK", r#"{"ready":true,"state":"ready"}"#), false), Ok("ready"));
        assert_eq!(said(&answer("200 OK", r#"{"live":true}"#), true), Ok("alive"));
        let starting = answer("503 Service Unavailable", r#"{"ready":false,"state":"starting"}"#);
        assert_eq!(said(&starting, false), Err("not ready: it is starting".to_owned()));
        let stuck = answer("503 Service Unavailable", r#"{"live":false,"busy_seconds":91.4}"#);
        assert_eq!(said(&stuck, true), Err("not alive: a worker has been at one batch for 91 s".to_owned()));
        let still = answer("503 Service Unavailable", r#"{"live":false,"missing_seconds":61}"#);
        assert_eq!(
            said(&still, true),
            Err("not alive: the threads that serve have come to nothing new for 61 s".to_owned())
        );
        let empty = answer("503 Service Unavailable", r#"{"ready":false,"state":"no_model"}"#);
        assert_eq!(said(&empty, false), Err("not ready: it has no model".to_owned()));
        for other in [answer("200 OK", "hello"), answer("404 Not Found", ""), "SSH-2.0-x\r\n".into(), String::new()] {
            assert!(said(&other, false).is_err() && said(&other, true).is_err(), "{other}");
        }
    }
}
