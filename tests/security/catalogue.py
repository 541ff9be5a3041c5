"""What attacks are sorted by: categories of OWASP, and sections of its verification standard."""

from __future__ import annotations

from typing import Final

import pytest

#: OWASP Top 10 of 2025, and OWASP API Security Top 10 of 2023.
CATEGORIES: Final = {
    "A01:2025": "Broken Access Control",
    "A02:2025": "Security Misconfiguration",
    "A03:2025": "Software Supply Chain Failures",
    "A04:2025": "Cryptographic Failures",
    "A05:2025": "Injection",
    "A06:2025": "Insecure Design",
    "A07:2025": "Authentication Failures",
    "A08:2025": "Software or Data Integrity Failures",
    "A09:2025": "Security Logging and Alerting Failures",
    "A10:2025": "Mishandling of Exceptional Conditions",
    "API1:2023": "Broken Object Level Authorization",
    "API2:2023": "Broken Authentication",
    "API3:2023": "Broken Object Property Level Authorization",
    "API4:2023": "Unrestricted Resource Consumption",
    "API5:2023": "Broken Function Level Authorization",
    "API6:2023": "Unrestricted Access to Sensitive Business Flows",
    "API7:2023": "Server Side Request Forgery",
    "API8:2023": "Security Misconfiguration",
    "API9:2023": "Improper Inventory Management",
    "API10:2023": "Unsafe Consumption of APIs",
}

#: Sections of the OWASP Application Security Verification Standard 5.0 that have to do with this server.
SECTIONS: Final = {
    "V1.1": "Encoding and Sanitization Architecture",
    "V1.2": "Injection Prevention",
    "V1.3": "Sanitization",
    "V1.4": "Memory, String, and Unmanaged Code",
    "V1.5": "Safe Deserialization",
    "V2.2": "Input Validation",
    "V2.3": "Business Logic Security",
    "V2.4": "Anti-automation",
    "V3.2": "Unintended Content Interpretation",
    "V3.4": "Browser Security Mechanism Headers",
    "V3.5": "Browser Origin Separation",
    "V4.1": "Generic Web Service Security",
    "V4.2": "HTTP Message Structure Validation",
    "V4.4": "WebSocket",
    "V5.2": "File Upload and Content",
    "V5.3": "File Storage",
    "V5.4": "File Download",
    "V6.3": "General Authentication Security",
    "V7.4": "Session Termination",
    "V8.2": "General Authorization Design",
    "V8.3": "Operation Level Authorization",
    "V8.4": "Other Authorization Considerations",
    "V9.1": "Token Source and Integrity",
    "V9.2": "Token Content",
    "V11.5": "Random Values",
    "V11.6": "Public Key Cryptography",
    "V12.1": "General TLS Security Guidance",
    "V12.3": "General Service to Service Communication Security",
    "V13.2": "Backend Communication Configuration",
    "V13.3": "Secret Management",
    "V13.4": "Unintended Information Leakage",
    "V14.2": "General Data Protection",
    "V14.3": "Client-side Data Protection",
    "V15.2": "Security Architecture and Dependencies",
    "V15.3": "Defensive Coding",
    "V15.4": "Safe Concurrency",
    "V16.2": "General Logging",
    "V16.3": "Security Events",
    "V16.4": "Log Protection",
    "V16.5": "Error Handling",
}


def against(owasp: str, asvs: str) -> pytest.MarkDecorator:
    """Mark a test, or with ``pytestmark`` those of a file, as attacks of a category.

    Args:
        owasp: A category of ``CATEGORIES``.
        asvs: A section of ``SECTIONS``.
    """
    assert owasp in CATEGORIES, f"{owasp}: no category of OWASP"
    assert asvs in SECTIONS, f"{asvs}: no section of the verification standard"
    return pytest.mark.security(owasp=owasp, asvs=asvs)
