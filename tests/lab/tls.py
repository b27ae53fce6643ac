"""The engine behind a TLS port, as one on another host is."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ENGINE = "/var/run/docker.sock"


def certify(folder: Path) -> None:
    """Writes ca.pem, cert.pem and key.pem: one certificate for both ends, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nonstop lab")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    text = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(text)
    (folder / "cert.pem").write_bytes(text)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@contextmanager
def engine_behind_tls(folder: Path) -> Iterator[dict[str, str]]:
    """What a client's environment has to be to reach the engine so; `folder` gets its files."""
    certify(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=_serve, args=(door, context), daemon=True).start()
        yield {
            "DOCKER_HOST": f"tcp://127.0.0.1:{door.getsockname()[1]}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(folder),
        }
        door.shutdown(socket.SHUT_RDWR)


def _serve(door: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(OSError):  # closed: the test is over
        while True:
            client, _ = door.accept()
            threading.Thread(target=_connect, args=(client, context), daemon=True).start()


def _connect(client: socket.socket, context: ssl.SSLContext) -> None:
    with (
        context.wrap_socket(client, server_side=True) as near,
        socket.socket(socket.AF_UNIX) as far,
    ):
        far.connect(ENGINE)
        back = threading.Thread(target=pump, args=(far, near, lambda: True), daemon=True)
        back.start()
        pump(near, far, lambda: True)
        back.join()


def pump(source: socket.socket, sink: socket.socket, ends: Callable[[], bool]) -> None:
    """What comes from one goes to the other, which learns of its end if `ends` says so then."""
    with suppress(OSError):  # either end may go first
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        if ends():
            sink.shutdown(socket.SHUT_WR)
