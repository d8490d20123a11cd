//! At which addresses other workers can try to reach this one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{UdpSocket, lookup_host};

/// Most addresses that a worker names: more interfaces than this are containers' bridges, not ways to neighbours.
pub const MAX_ADDRESSES: usize = 16;

/// The local address from which `coordinator` (`host:port`) is reached: no packet is sent to find out.
///
/// # Errors
/// Where the name does not resolve or no route leads there.
pub async fn local_address_towards(coordinator: &str) -> io::Result<IpAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for remote in lookup_host(coordinator).await? {
        match route(remote).await {
            Ok(local) => return Ok(local),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn route(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(remote).await?;
    Ok(socket.local_addr()?.ip())
}

/// The addresses of every interface of this machine.
///
/// # Errors
/// Where the operating system does not list them.
pub fn interfaces() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect())
}

/// What to tell others: where the data plane is `bound`, given the local address `towards` the coordinator and this
/// machine's `interfaces`.
///
/// A socket bound to one address is reached there alone. Otherwise the address that reaches the coordinator comes
/// first, because neighbours most likely share its network, and then all others of a family that the socket hears;
/// loopback only where the coordinator is on this machine too.
pub fn candidates(bound: SocketAddr, towards: IpAddr, interfaces: &[IpAddr]) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let hears = |ip: &IpAddr| bound.is_ipv6() || ip.is_ipv4();
    let reachable = |ip: &IpAddr| match ip {
        _ if ip.is_loopback() => towards.is_loopback(),
        // A link-local address needs the name of an interface of whoever dials it, which differs from machine to machine.
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_unspecified(),
        IpAddr::V4(v4) => !v4.is_unspecified(),
    };
    let mut found: Vec<SocketAddr> = Vec::new();
    for ip in std::iter::once(&towards).chain(interfaces).filter(|ip| hears(ip) && reachable(ip)) {
        let address = SocketAddr::new(*ip, bound.port());
        if !found.contains(&address) && found.len() < MAX_ADDRESSES {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn at(port: u16, list: &[&str]) -> Vec<SocketAddr> {
        ips(list).into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
    }

    #[test]
    fn the_way_to_the_coordinator_comes_first_and_loopback_is_left_out() {
        let here = ips(&["127.0.0.1", "10.0.0.2", "192.168.1.7", "fe80::1", "2001:db8::7"]);
        let towards = "192.168.1.7".parse().unwrap();
        let v4 = candidates("0.0.0.0:7000".parse().unwrap(), towards, &here);
        assert_eq!(v4, at(7000, &["192.168.1.7", "10.0.0.2"]));
        let both = candidates("[::]:7000".parse().unwrap(), towards, &here);
        assert_eq!(both, at(7000, &["192.168.1.7", "10.0.0.2", "2001:db8::7"]));
    }

    #[test]
    fn loopback_is_named_where_the_coordinator_is_on_this_machine() {
        let here = ips(&["127.0.0.1", "10.0.0.2"]);
        let found = candidates("0.0.0.0:9".parse().unwrap(), "127.0.0.1".parse().unwrap(), &here);
        assert_eq!(found, at(9, &["127.0.0.1", "10.0.0.2"]));
    }

    #[test]
    fn a_socket_bound_to_one_address_is_reached_there_alone() {
        let bound: SocketAddr = "10.0.0.2:9".parse().unwrap();
        assert_eq!(candidates(bound, "127.0.0.1".parse().unwrap(), &ips(&["127.0.0.1"])), [bound]);
    }

    #[tokio::test]
    async fn the_way_to_this_machine_is_loopback() {
        assert!(local_address_towards("127.0.0.1:1").await.unwrap().is_loopback());
    }
}
