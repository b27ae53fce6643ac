"""A TLS context for requests without TLS: httpx makes a new one for each, in 15 to 40 ms."""

import ssl

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
