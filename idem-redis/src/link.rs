//! What a connection is made of: of a URL, or of the connection that the user has.

use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, Pipeline, RedisError, ServerError, Value,
};

/// How many steps may wait to be written. Small steps of many requests share one connection.
const MAX_QUEUED: usize = 1024;

/// Firewalls forget connections that are idle for some minutes, and say so to neither end.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the kernel tries to deliver what was sent, also on a connection that was given up. Only Linux can be told.
pub(crate) const MAX_DELIVERY: Duration = Duration::from_secs(20);

/// Where claims and records are.
pub(crate) enum Place {
    Server(LinkSource),
    /// A client of one node, whose settings are those of all, and the nodes that are asked for the others.
    Cluster(Box<Client>, Vec<Address>),
}

/// The address of a node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// `None` if the client does not connect to a port.
    pub(crate) fn of(client: &Client) -> Option<Self> {
        match client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(Self { host: host.clone(), port: *port })
            }
            _ => None,
        }
    }
}

/// Where connections come from.
#[derive(Clone)]
pub(crate) enum LinkSource {
    Url(Box<ConnectionInfo>),
    Manager(ConnectionManager),
}

/// One connection.
#[derive(Clone)]
pub(crate) enum Link {
    Own(MultiplexedConnection),
    Manager(ConnectionManager),
}

impl LinkSource {
    /// Connections to another server, with the settings of `client`.
    pub(crate) fn at(client: &Client, Address { host, port }: &Address) -> Self {
        let info = client.get_connection_info().clone();
        let addr = match info.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host.clone(), *port),
        };
        Self::of(info.set_addr(addr))
    }

    /// Connections to this server, with the settings of the store.
    pub(crate) fn of(info: ConnectionInfo) -> Self {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(MAX_DELIVERY);
        Self::Url(Box::new(info.set_tcp_settings(tcp)))
    }

    pub(crate) async fn connect(&self) -> Result<Link, RedisError> {
        match self {
            Self::Url(info) => {
                // Every wait has its own deadline here, connecting included.
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(None)
                    .set_response_timeout(None)
                    .set_pipeline_buffer_size(MAX_QUEUED);
                let client = Client::open((**info).clone())?;
                client.get_multiplexed_async_connection_with_config(&config).await.map(Link::Own)
            }
            Self::Manager(manager) => Ok(Link::Manager(manager.clone())),
        }
    }

    /// Returns what a subscription is made of. `None` if waiters only poll.
    pub(crate) fn subscriber(&self) -> Option<Client> {
        match self {
            Self::Url(info) => Client::open((**info).clone()).ok(),
            Self::Manager(_) => None,
        }
    }
}

impl Link {
    /// An error of the server is a value.
    pub(crate) async fn command(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        match self.connection().req_packed_command(command).await {
            Ok(value) => Ok(value),
            Err(error) => ServerError::try_from(error).map(Value::ServerError),
        }
    }

    pub(crate) async fn pipeline(&mut self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.connection().req_packed_commands(commands, 0, commands.len()).await
    }

    fn connection(&mut self) -> &mut (dyn ConnectionLike + Send) {
        match self {
            Self::Own(connection) => connection,
            Self::Manager(manager) => manager,
        }
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    #[test]
    fn each_node_of_a_cluster_is_reached_as_the_first_one_is() {
        let first = Client::open("rediss://user:password@first:6380/#insecure").unwrap();
        let LinkSource::Url(info) = LinkSource::at(&first, &Address { host: "second".into(), port: 6381 }) else {
            panic!("it is not a connection of the service");
        };
        assert!(
            matches!(info.addr(), ConnectionAddr::TcpTls { host, port: 6381, insecure: true, .. } if host == "second"),
            "{:?}",
            info.addr()
        );
        assert_eq!(info.redis_settings().username(), Some("user"));
    }
}
