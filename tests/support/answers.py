"""Answers over HTTP: what every error looks like, and answers to bytes that no client library sends."""

import socket
from typing import Any

import httpx
from running_server import Server


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The one error form, in full."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "Traceback" not in error["message"]
    return error


def raw(server: Server, request: bytes) -> httpx.Response:
    """The answer to bytes that no client library would send."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [tuple(line.split(b": ", 1)) for line in lines if not line.lower().startswith(b"transfer-encoding")]
    if b"chunked" in head.lower():
        body = b"".join(body.split(b"\r\n")[1::2])
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]
