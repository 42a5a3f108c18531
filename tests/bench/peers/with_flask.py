"""Flask as its users write it."""

from flask import Flask, Response

app = Flask(__name__)


@app.get("/")
def hello() -> Response:
    return Response("Hello, world!\n", mimetype="text/plain")
