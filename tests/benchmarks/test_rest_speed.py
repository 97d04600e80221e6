"""How fast the REST API answers over a large store, also while it reads and loads.

Each figure is compared with that of the liveness in the same run: it has no service behind it.
"""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.api.access import AccessRules
from ktrdr_pipelines.api.rest_server import listening_socket, open_services, serving_in_thread
