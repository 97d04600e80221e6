"""Bar files as versions before ledger 8 wrote them: no checksums, no digests, no price basis."""

import json
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq

from ktrdr_pipelines.domain.bars import BAR_SCHEMA
from ktrdr_pipelines.store.bars.bar_file import read_footer
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.file_index import fingerprint, indexed_file
from ktrdr_pipelines.store.ledger.ledger import Ledger


def within_data(path: Path, column: str = "close") -> int:
    """Return the position of a byte of a column's values in a file, which a checksum covers."""
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(0).column(file.schema_arrow.get_field_index(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    return int(start + chunk.total_compressed_size - 1)


def make_older(layout: StoreLayout, path: Path) -> None:
    """Rewrite a file as an earlier version did, and update its row in the ledger."""
    with pq.ParquetFile(path) as file:
        bars = file.read(columns=BAR_SCHEMA.names).replace_schema_metadata(None).cast(BAR_SCHEMA)
        footer = json.loads(file.metadata.metadata[b"ktrdr"])
    del footer["seal"], footer["digests"], footer["basis"]
    footer["schema_version"] = 1
    footer["identity"]["epoch"] = 0
    with pq.ParquetWriter(
        path,
        BAR_SCHEMA,
        compression="zstd",
        store_schema=False,
        sorting_columns=(pq.SortingColumn(0),),
    ) as writer:
        writer.write_table(bars)
        writer.add_key_value_metadata({"ktrdr": json.dumps(footer, separators=(",", ":"))})
    with closing(Ledger(layout.ledger)) as ledger:
        metadata = read_footer(path)
        key = f"{metadata.identity.symbol}|{metadata.identity.timeframe}"
        ledger.files.record(key, {layout.relative(path): indexed_file(fingerprint(path), metadata)})
