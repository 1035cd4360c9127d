"""Errors of servers whose certificate cannot be verified, as behind a company's proxy."""

from __future__ import annotations

import ssl
import urllib.error

TRUST_PROXY = "set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the file with your proxy's certificate"
"""Hint for :func:`certificate_doubt`: Python and Hugging Face's client read the first variable, W&B's the second."""


def certificate_doubt(error: Exception) -> str | None:
    """Return the clause of an error message for a certificate that cannot be verified; None for any other error."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return None
    return f"the server's certificate cannot be verified ({cause.verify_message})"
