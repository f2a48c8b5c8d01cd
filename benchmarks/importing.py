"""What `import dal_native` costs beyond NumPy and SciPy's linear algebra."""


def timeraw_import():
    return "import dal_native", "import numpy, scipy.linalg"


def timeraw_numpy_and_scipy():
    return "import numpy, scipy.linalg"
