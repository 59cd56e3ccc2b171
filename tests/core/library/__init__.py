"""Tests of the library behind `import adap`."""
