//! The address where the service answers over HTTP: the value of `backup.listen` and of `kg serve
//! --listen`.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde_json::Value;

use crate::error::{Error, Result};

const DEFAULT_PORT: u16 = 9821;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

impl Listen {
    /// A port alone means the loopback address. To be reachable from other machines, the user must
    /// write an address.
    fn port(port: u16) -> Self {
        Listen::At((Ipv4Addr::LOCALHOST, port).into())
    }

    /// Parses a configuration value, in which a port may also be a number.
    pub fn of(value: &Value) -> Result<Self> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(refused(&value.to_string())),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Listen::port(DEFAULT_PORT)
    }
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        let address = text.parse().map(Listen::At);
        address
            .or_else(|_| text.parse().map(Listen::port))
            .map_err(|_| refused(text))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::At(address) => address.fmt(f),
        }
    }
}

fn refused(text: &str) -> Error {
    Error::invalid(
        format!("`{text}` is not an address to listen on"),
        "Give a port of this machine such as 9821, an address and port such as 0.0.0.0:9821 or [::1]:9821, or off",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_alone_is_for_this_machine_only_and_every_other_address_has_to_be_written() {
        let told = |value| Listen::of(&value).map(|listen| listen.to_string());
        assert_eq!(told(json!("9821")).unwrap(), "127.0.0.1:9821");
        assert_eq!(told(json!(9000)).unwrap(), "127.0.0.1:9000");
        assert_eq!(told(json!("0.0.0.0:80")).unwrap(), "0.0.0.0:80");
        assert_eq!(told(json!("[::1]:9821")).unwrap(), "[::1]:9821");
        assert_eq!(told(json!("off")).unwrap(), "off");
        assert_eq!(Listen::default().to_string(), "127.0.0.1:9821");
        for value in [
            json!("70000"),
            json!(-1),
            json!(1.5),
            json!(false),
            json!("localhost"),
            json!("10.0.0.1"),
            json!(""),
        ] {
            assert!(
                told(value.clone())
                    .unwrap_err()
                    .message
                    .contains("is not an address to listen on"),
                "{value}"
            );
        }
    }
}
