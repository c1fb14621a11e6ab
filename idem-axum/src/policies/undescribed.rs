//! Endpoints that an OpenAPI document lacks something for.

use std::fmt;

/// Listed endpoints that an OpenAPI document has no operation for, or one that refers to a component which is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undescribed {
    endpoints: Vec<String>,
    /// What they refer to. `None` if they have no operation at all.
    referred: Option<String>,
}

impl Undescribed {
    pub(super) fn without_operation(endpoints: Vec<String>) -> Self {
        Self { endpoints, referred: None }
    }

    pub(super) fn unresolved(endpoint: String, referred: String) -> Self {
        Self { endpoints: vec![endpoint], referred: Some(referred) }
    }

    /// Which: `"POST /orders"`.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }
}

impl fmt::Display for Undescribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.endpoints.join(", ");
        match &self.referred {
            None => write!(
                f,
                "the OpenAPI document has no operation for {endpoints}: name the handler in `paths(..)`, with the method and \
                 the path of the list"
            ),
            Some(referred) => write!(
                f,
                "the OpenAPI document has nothing at {referred}, which {endpoints} refers to: add the component before it is \
                 described"
            ),
        }
    }
}

impl std::error::Error for Undescribed {}
