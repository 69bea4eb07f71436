"""Options shared by the test files."""

from pathlib import Path


def pytest_addoption(parser):
    parser.addoption(
        "--golden", default=str(Path(__file__).parent / "golden"), help="folder of recorded cases to run against"
    )
    parser.addoption("--device", default="cpu", help="where recorded cases run; elsewhere than on the CPU, untrained")
