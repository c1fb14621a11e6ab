//! The conformance suite of stores, each case against its own server: as a user with all rights, with the documented ones, and
//! over the connection of the service.

use idem_redis::RedisStore;
use idem_testkit::intercept::{Intercept, Keeps};
use idem_testkit::redis::Redis;

/// A store, and the server that it needs.
type Served = Intercept<RedisStore, Keeps<Redis>>;

mod with_all_rights {
    use super::*;

    idem_runtime::conformance_tests!(|| async {
        let server = Redis::start().await;
        Served::new(RedisStore::connect(server.url()).await.unwrap(), Keeps(server))
    });
}

mod with_the_documented_rights {
    use super::*;

    idem_runtime::conformance_tests!(|| async {
        let server = Redis::start().await;
        // Operators list unknown outcomes, which is optional.
        crate::common::set_user(&server, &[&crate::common::documented_rights()[..], &["+scan"]].concat()).await;
        let store = RedisStore::builder(crate::common::user_url(&server)).prefix("shop").connect().await.unwrap();
        Served::new(store, Keeps(server))
    });
}

mod over_a_connection_manager {
    use super::*;

    idem_runtime::conformance_tests!(|| async {
        let server = Redis::start().await;
        let manager = redis::Client::open(server.url()).unwrap().get_connection_manager().await.unwrap();
        Served::new(RedisStore::from_connection_manager(manager), Keeps(server))
    });
}
