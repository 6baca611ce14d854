//! Looks for what a sandbox must not have: the machine's files, variables, arguments, input and network.

use std::{
    env, fs,
    io::{self, Read},
    net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
};

/// What there is, one thing a word and separated by commas; `nothing` if there is nothing.
pub(crate) fn explore() -> String {
    let mut found = vec![];
    let mut look = |what: String, is_there: bool| {
        if is_there {
            found.push(what);
        }
    };
    for path in ["/", ".", "..", "/etc", "/proc", "/tmp", "/var/run/secrets"] {
        look(format!("folder {path}"), fs::read_dir(path).is_ok());
    }
    for path in [
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/1/cmdline",
        "/dev/urandom",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "../../../../etc/hostname",
        "//etc//hosts",
    ] {
        look(format!("file {path}"), fs::read(path).is_ok() || fs::metadata(path).is_ok());
    }
    for path in ["/tmp/hostile", "hostile", "/dev/shm/hostile"] {
        look(format!("a place to write {path}"), fs::write(path, "was here").is_ok());
        look(format!("a folder made {path}"), fs::create_dir(path).is_ok());
    }
    look("a working directory".to_owned(), env::current_dir().is_ok_and(|path| path.is_dir()));
    for (name, _) in env::vars_os() {
        look(format!("variable {}", name.display()), true);
    }
    // Every guest is given the same one, which says nothing of the machine.
    look("arguments".to_owned(), !env::args().eq(["guest".to_owned()]));
    let mut input = vec![];
    let read = io::stdin().take(1).read_to_end(&mut input);
    look("input".to_owned(), read.is_ok_and(|length| length > 0));
    for address in ["127.0.0.1:443", "127.0.0.1:2379", "10.96.0.1:443", "169.254.169.254:80"] {
        look(format!("connection {address}"), TcpStream::connect(address).is_ok());
    }
    look("a TCP socket".to_owned(), TcpListener::bind("127.0.0.1:0").is_ok());
    look("a UDP socket".to_owned(), UdpSocket::bind("127.0.0.1:0").is_ok());
    look("names".to_owned(), "kubernetes.default.svc:443".to_socket_addrs().is_ok());
    if found.is_empty() { "nothing".to_owned() } else { found.join(", ") }
}
