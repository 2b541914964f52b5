"""Files served from this machine, with the faults of real servers."""

import hashlib
import http.server
import threading
from contextlib import contextmanager


class Server:
    """What is served, by path without the slash, and how.

    Attributes:
        files: contents by path.
        cut: paths of which only so many bytes come before the connection ends, each time.
        states: status codes that come first, one a request, by path.
        ranges: whether parts are sent where they are asked for.
        asked: paths and ranges that were asked for, in their order.
        headers: further headers by path.
    """

    def __init__(self):
        self.files, self.cut, self.states, self.headers, self.asked = {}, {}, {}, {}, []
        self.ranges = True
        self.url = ""

    def remote(self, remote):
        """The same download from here, with the checksum of what lies here."""
        content = self.files[remote.name]
        digest = hashlib.sha256(content).hexdigest()
        return type(remote)(f"{self.url}/{remote.name}", remote.name, len(content), digest)


def _handler(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, wanted = self.path.lstrip("/"), self.headers.get("Range")
            server.asked.append((path, wanted))
            if server.states.get(path):
                return self.send_error(server.states[path].pop(0))
            if path not in server.files:
                return self.send_error(404)
            content = server.files[path]
            start = int(wanted[len("bytes=") : -1]) if wanted and server.ranges else 0
            if start and start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in server.headers.get(path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            end = start + server.cut[path] if path in server.cut else len(content)
            self.wfile.write(content[start:end])
            return None

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def serving():
    """A server of 127.0.0.1, for as long as it is needed."""
    served = Server()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    served.url = f"http://127.0.0.1:{http_server.server_port}"
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()
