#!/bin/sh
# Run the tests of the public API with an installed package, outside src/. Argument: PYTHON.
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
tests=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$tests/test_public_api.py" "$tests/test_command_line.py" \
  "$tests/integration/test_end_to_end.py" "$tests/finetuning/_weights/test_load.py" "$tests/support_disk.py" "$folder"
cd "$folder"
printf '[pytest]\nmarkers =\n    slow: slow\n' > pytest.ini
"$python" -c 'import finetunelib; assert "site-packages" in finetunelib.__file__'
"$python" -m pytest -q -p no:cacheprovider .
