"""Which SQL a query may contain, decided on the statement as DuckDB parses it, before it runs.

Everything not known to be harmless is refused: each statement must be a query, an EXPLAIN of one,
or one of a few settings and PRAGMAs; a query may name only relations of the catalog, functions that
compute, and table functions of a short list. An EXPLAIN is checked by what it explains.

DuckDB's own barriers (``store.catalog.catalog``) come after this check and cannot replace it: a
folder that a connection may read is one that it may also write.

Not here: the barriers, and running what was checked (``store.catalog.catalog``).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

import duckdb

from ktrdr_pipelines.errors import UsageError

STATEMENTS: Final = "SELECT, FROM, WITH, VALUES, DESCRIBE, SUMMARIZE, SHOW, EXPLAIN or PIVOT"

SETTINGS: Final = frozenset(
    {
        "calendar",
        "default_null_order",
        "default_order",
        "max_memory",
        "memory_limit",
        "null_order",
        "preserve_insertion_order",
        "threads",
        "timezone",
    }
)
"""Settings that a query may change for itself: none of them names a file."""

_MOST_THREADS: Final = 256
"""Most threads that a query may set; DuckDB starts them all before it begins."""

PRAGMAS: Final = frozenset(
    {
        "collations",
        "database_list",
        "database_size",
        "functions",
        "platform",
        "show_databases",
        "show_tables",
        "show_tables_expanded",
        "storage_info",
        "table_info",
        "user_agent",
        "version",
    }
)

TABLE_FUNCTIONS: Final = frozenset(
    {
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_functions",
        "duckdb_indexes",
        "duckdb_keywords",
        "duckdb_memory",
        "duckdb_optimizers",
        "duckdb_schemas",
        "duckdb_sequences",
        "duckdb_settings",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_variables",
        "duckdb_views",
        "generate_series",
        "icu_calendar_names",
        "json_each",
        "json_tree",
        "pg_timezone_names",
        "pragma_collations",
        "pragma_database_size",
        "pragma_platform",
        "pragma_show",
        "pragma_storage_info",
        "pragma_table_info",
        "pragma_user_agent",
        "pragma_version",
        "range",
        "repeat",
        "repeat_row",
        "unnest",
    }
)
"""Functions that may be used in FROM, besides the macros of the catalog.

Functions that run SQL or resolve a name given as text (``query``, ``query_table``, ``histogram``)
are left out: what they read is known only while they run.
"""

_VOLATILE: Final = frozenset(
    {"error", "gen_random_uuid", "random", "setseed", "stats", "txid_current", "uuid"}
    | {"uuidv4", "uuidv7", "vector_type", "current_query"}
)
"""Functions that DuckDB calls volatile and that change nothing outside the query."""

_UNLISTED: Final = frozenset(
    {"cume_dist", "dense_rank", "fill", "first_value", "lag", "last_value", "lead", "nth_value"}
    | {"ntile", "overlay", "percent_rank", "rank", "rank_dense", "row_number", "unnest"}
)
"""Functions that DuckDB 1.4 knows without listing them in ``duckdb_functions()``."""

_REACHING: Final = frozenset({"getenv", "json_serialize_plan", "pg_sleep"})
"""Functions that are listed as scalar but read beyond their arguments, or wait."""

_FUNCTIONS: Final = """
    SELECT DISTINCT lower(function_name), database_name = 'ktrdr' FROM duckdb_functions()
    WHERE database_name = 'ktrdr' OR function_type IN ('scalar', 'aggregate', 'macro', 'window')
        AND stability IS DISTINCT FROM 'VOLATILE'
"""
"""Functions that compute, and the catalog's macros; the second column tells them apart."""

_QUALIFIERS: Final = """
    SELECT lower(database_name) FROM duckdb_databases()
    UNION SELECT lower(schema_name) FROM duckdb_schemas()
"""

_RELATIONS: Final = """
    SELECT lower(table_name) FROM duckdb_tables() UNION SELECT lower(view_name) FROM duckdb_views()
"""

_EXPRESSIONS: Final = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT"}
    | {"DEFAULT", "FUNCTION", "LAMBDA", "LAMBDA_REF", "OPERATOR", "PARAMETER"}
    | {"POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "TYPE", "WINDOW"}
)
"""Classes of expressions in DuckDB's syntax tree of a statement."""

_NODES: Final = frozenset(
    {"CTE_NODE", "RECURSIVE_CTE_NODE", "SELECT_NODE", "SET_OPERATION_NODE"}
    | {"BASE_TABLE", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT", "SHOW_REF", "SUBQUERY"}
    | {"TABLE_FUNCTION", "ASCENDING", "DESCENDING", "ORDER_DEFAULT"}
)
"""All other types in the syntax tree; those that insert, update or delete are not among them."""

_TREE: Final = """
    SELECT id, parent, key, json_extract_string(atom, '$')
    FROM json_tree(json_serialize_sql(?::VARCHAR))
"""

_NO_QUERY: Final = "Only SELECT statements"
"""How DuckDB's message begins where a statement parses but is not a query."""

_PIVOTS: Final = frozenset({"PIVOT", "PIVOT_WIDER"})
_AFTER_PIVOT_ON: Final = frozenset(
    {"USING", "GROUP", "ORDER", "LIMIT", "OFFSET", "UNION", "EXCEPT", "INTERSECT"}
)
_QUERIES: Final = frozenset({"SELECT", "FROM", "WITH", "VALUES", "TABLE", *_PIVOTS})
_EXPLAIN_OPTIONS: Final = frozenset({"ANALYZE", "FORMAT", "VERBOSE"})
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")

_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class CheckedSql:
    """What may run, in this order; ``query`` is the last statement where that returns rows."""

    settings: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    query: str | None = None


_Node = dict[str, str]
"""The scalar values of one object in a statement's syntax tree, by key."""


class _Token(NamedTuple):
    """A keyword, name or operator; ``word`` is "" for constants, a quote for quoted names."""

    start: int
    word: str


class _Text:
    """A piece of SQL and its tokens; positions count bytes, as DuckDB's do."""

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self._bytes = sql.encode()
        self._tokens = [
            _token(self._bytes, start, kind.name)
            for start, kind in duckdb.tokenize(sql)
            if kind.name != "comment"  # DuckDB 1.4 leaves comments out
        ]
        self.words = [token.word for token in self._tokens]

    def between(self, start: int, end: int) -> str:
        """Return the text from token ``start`` up to token ``end``; 0 is the start of the text."""
        return self._bytes[self._position(start) : self._position(end)].decode()

    def after(self, index: int) -> "_Text":
        """Return the text from a token on; empty where there are fewer tokens."""
        return _Text(self.between(index, len(self.words)))

    def statements(self) -> Iterator["_Text"]:
        """Yield the statements between semicolons; those without a token are left out."""
        ends = [token.start for token in self._tokens if token.word == ";"]
        for start, end in zip([0, *(end + 1 for end in ends)], [*ends, None], strict=True):
            statement = _Text(self._bytes[start:end].decode())
            if statement.words:
                yield statement

    def _position(self, index: int) -> int:
        if index == 0:
            return 0
        return self._tokens[index].start if index < len(self.words) else len(self._bytes)


def is_empty(sql: str) -> bool:
    """Return whether SQL has no statement: only blanks, comments and semicolons.

    Raises:
        UsageError: DuckDB cannot read the text.
    """
    return not any(_text(sql).statements())


def check_statements(connection: duckdb.DuckDBPyConnection, sql: str) -> CheckedSql:
    """Check whether SQL may run on a connection to the catalog; none of it runs here.

    Args:
        connection: has the catalog attached as ``ktrdr``; its macros and schemas may be named.
        sql: any number of statements. Settings must come first: they are locked before the first
            other statement runs.

    Raises:
        UsageError: a statement is not allowed, or reads beyond the catalog.
        duckdb.ParserException: the text is not SQL.
    """
    settings: list[str] = []
    statements: list[str] = []
    gives_rows = False
    for statement in _text(sql).statements():
        match statement.words:
            case ["SET", "VARIABLE", *_]:
                if statement.words[3:4] not in (["="], ["TO"]):
                    raise _refusal(
                        "SET VARIABLE needs a name and a value", hint="Write SET VARIABLE x = 1"
                    )
                # The value may be a query.
                _check_query(connection, _Text(f"SELECT {statement.after(4).sql}"))
            case ["SET", *_]:
                _check_setting(statement, comes_first=not statements)
                settings.append(statement.sql)
                continue
            case ["PRAGMA", *_]:
                _check_pragma(statement)
            case ["EXPLAIN", *_]:
                _check_query(connection, _explained(statement))
            case _:
                _check_query(connection, statement)
        statements.append(statement.sql)
        gives_rows = statement.words[0] != "SET"
    query = statements.pop() if gives_rows else None
    return CheckedSql(tuple(settings), tuple(statements), query)


def _text(sql: str) -> _Text:
    """Return the tokens of SQL; DuckDB itself stops at a NUL, and rejects half a character."""
    try:
        if "\0" not in sql:
            return _Text(sql)
    except UnicodeEncodeError:
        pass
    raise _refusal(
        "it is not valid UTF-8 text, or contains a NUL", hint="Write the query as UTF-8 text"
    )


def _token(sql: bytes, start: int, kind: str) -> _Token:
    if kind in {"string_const", "numeric_const"}:
        return _Token(start, "")
    text = sql[start : start + 200].decode(errors="ignore")
    word = _WORD.match(text)
    return _Token(start, word[0].upper() if word else text[0])


def _check_setting(statement: _Text, *, comes_first: bool) -> None:
    """Allow ``SET name = value`` for harmless names, with a single constant or word."""
    words = [word for word in statement.words if word not in {"GLOBAL", "SESSION"}]
    name = words[1].lower() if len(words) > 1 else ""
    if len(words) != 4 or words[2] not in {"=", "TO"} or name not in SETTINGS:
        raise _refusal(
            f"SET {name or 'without a name'} could change what is read or written, or its value is "
            "not a single constant",
            hint=f"Allowed are {', '.join(sorted(SETTINGS))}, and SET VARIABLE",
        )
    threads = statement.between(len(statement.words) - 1, len(statement.words)).strip(" \t\r\n';")
    if name == "threads" and not (threads.isdecimal() and 0 < int(threads[:9]) <= _MOST_THREADS):
        raise _refusal(
            f"SET threads = {threads} is not a number from 1 to {_MOST_THREADS}",
            hint="Without this setting DuckDB uses one thread for each processor",
        )
    if not comes_first:
        raise _refusal(
            f"SET {name} follows a statement that is not a setting; settings are locked by then",
            hint="Put it first",
        )


def _check_pragma(statement: _Text) -> None:
    """Allow a PRAGMA that only shows something, with at most one name or text."""
    words = statement.words
    name = words[1].lower() if len(words) > 1 else ""
    has_form = len(words) == 2 or (len(words) == 5 and (words[2], words[4]) == ("(", ")"))
    if has_form and name in PRAGMAS:
        return
    raise _refusal(
        f"PRAGMA {name or 'without a name'} could write or change settings, and ktrdr query is "
        "read-only",
        hint=f"Allowed are {', '.join(sorted(PRAGMAS))}",
    )


def _explained(statement: _Text) -> _Text:
    """Return the statement that an EXPLAIN explains."""
    words = statement.words
    start = 2 if words[1:2] == ["ANALYZE"] else 1
    match words[start:]:
        case ["(", option, *_] if option in _EXPLAIN_OPTIONS:
            start = _first_outside_brackets(words, start + 1, len(words), _CLOSING) + 1
    explained = statement.after(start)
    if not explained.words:
        raise _refusal("EXPLAIN has no query to explain", hint="Write EXPLAIN SELECT 1")
    return explained


def _check_query(connection: duckdb.DuckDBPyConnection, query: _Text) -> None:
    """Check a query by the syntax tree that DuckDB's parser makes of it."""
    nodes, error = _tree(connection, query)
    if error.startswith(_NO_QUERY) and not _PIVOTS.isdisjoint(query.words):
        rewritten, taken = _with_fixed_columns(query)
        nodes, error = _tree(connection, rewritten)
        for part in taken:
            _check_query(connection, part)
    if error:
        first = query.words[0] if query.words[0].isalpha() else "this"
        reason = f"{first} could write or reach beyond the store, and ktrdr query is read-only"
        raise _refusal(
            reason if error.startswith(_NO_QUERY) else error,
            hint=f"Write {STATEMENTS}; for other statements open the catalog in DuckDB itself",
        )
    for node in nodes:
        _check_kind(node)
    _check_functions(connection, nodes)
    _check_relations(connection, nodes)


def _tree(connection: duckdb.DuckDBPyConnection, query: _Text) -> tuple[list[_Node], str]:
    """Return the nodes of a query's syntax tree, or DuckDB's message on why it has none.

    Functions used in FROM get the key ``in_from``.

    Raises:
        duckdb.ParserException: the text is not SQL.
    """
    rows = connection.execute(_TREE, [query.sql]).fetchall()
    nodes: dict[int, _Node] = {number: {} for number, *_ in rows}
    for _, parent, key, text in rows:
        if parent is not None and text is not None:
            nodes[parent][key] = text
    if nodes[0].get("error") != "false":
        if nodes[0].get("error_type") == "parser":
            connection.extract_statements(query.sql)  # raises with the line and the place
        return [], nodes[0].get("error_message", "DuckDB returns no syntax tree of it")
    for number, parent, key, _ in rows:
        if key == "function" and nodes[parent].get("type") == "TABLE_FUNCTION":
            nodes[number]["in_from"] = "true"
    return list(nodes.values()), ""


def _check_kind(node: _Node) -> None:
    expression, kind = node.get("class"), node.get("type", "")
    if expression is not None:
        is_known = expression in _EXPRESSIONS
    else:
        is_known = not kind or kind in _NODES or kind.endswith(("_TYPE_INFO", "_MODIFIER"))
    if not is_known:
        raise _refusal(
            f"it contains {expression or kind}, which could write, and ktrdr query is read-only",
            hint=f"Write {STATEMENTS}",
        )


def _check_functions(connection: duckdb.DuckDBPyConnection, nodes: Iterable[_Node]) -> None:
    """Refuse functions that are not known to only compute."""
    calls = {
        (name.lower(), "in_from" in node)
        for node in nodes
        if _WORD.search(name := node.get("function_name", ""))  # operators have no letters
    }
    if not calls:
        return
    listed = connection.execute(_FUNCTIONS).fetchall()
    in_from = TABLE_FUNCTIONS | {name for name, is_of_catalog in listed if is_of_catalog}
    computing = ({name for name, _ in listed} | _VOLATILE | _UNLISTED) - _REACHING
    for name, is_in_from in sorted(calls):
        if name not in (in_from if is_in_from else computing) or name.startswith("__internal"):
            raise _refusal(
                f"{name}() is not an allowed function: it reads beyond the store, has side "
                "effects, or does not exist",
                hint="Read bars from `bars` or series('AAPL', '1m'); to join your own files, use "
                "DuckDB itself",
            )


def _check_relations(connection: duckdb.DuckDBPyConnection, nodes: Iterable[_Node]) -> None:
    """Refuse names that DuckDB would read as a file: 'x.csv', "x.csv", x.csv, a URL."""
    for node in nodes:
        if "table_name" not in node:
            continue
        table = node["table_name"].strip('"')  # SHOW TABLES reads a relation named "tables"
        parts = [part for key in ("catalog_name", "schema_name") if (part := node.get(key))]
        # The name of a file has a suffix, a folder or a scheme.
        may_be_file = re.fullmatch(r"[\w ]*", table) is None
        if may_be_file or (parts and table and not _exists(connection, parts, table)):
            raise _refusal(
                f"{'.'.join([*parts, table])} is not a table or view of the catalog, and a query "
                "reads only the store",
                hint="SHOW TABLES lists what exists; to join your own files, use DuckDB itself",
            )


def _exists(connection: duckdb.DuckDBPyConnection, parts: Sequence[str], table: str) -> bool:
    """Return whether the database, the schema and the relation exist, each by itself."""
    qualifiers = {name for (name,) in connection.execute(_QUALIFIERS).fetchall()}
    relations = {name for (name,) in connection.execute(_RELATIONS).fetchall()}
    return qualifiers.issuperset(map(str.lower, parts)) and table.lower() in relations


def _with_fixed_columns(query: _Text) -> tuple[_Text, list[_Text]]:
    """Rewrite each PIVOT whose columns follow from the data to one with given columns.

    DuckDB turns the former into several statements and has no tree of them. The rewritten text
    never runs; its tree shows what the original would read.

    Returns:
        The rewritten query, and the queries for column values that were removed from it.
    """
    words = query.words
    edits: list[tuple[int, int, str]] = []
    taken: list[tuple[int, int]] = []
    for index, word in enumerate(words):
        if word not in _PIVOTS or any(start <= index < end for start, end in taken):
            continue
        for start, end in _pivot_elements(words, index + 1):
            listed = _first_outside_brackets(words, start, end, {"IN"})
            if listed == end:
                edits.append((start, start, "("))
                edits.append((end, end, "\n) IN (0) "))
                continue
            match words[listed + 1 : end]:
                case ["(", first, *_] if first in _QUERIES:
                    closing = _first_outside_brackets(words, listed + 2, end, _CLOSING)
                    edits.append((listed + 2, closing, "0"))
                    taken.append((listed + 2, closing))
    text, done = "", 0
    for start, end, added in sorted(edits):
        text += query.between(done, start) + added
        done = end
    text += query.between(done, len(words))
    return _Text(text), [_Text(query.between(start, end)) for start, end in taken]


def _pivot_elements(words: Sequence[str], start: int) -> Iterator[tuple[int, int]]:
    """Yield the elements of a PIVOT's ON clause; ``start`` is the index after the word PIVOT.

    Yields:
        The index of the first word of an element, and the index after its last word.
    """
    end = _first_outside_brackets(words, start, len(words), _CLOSING)
    first = None
    while (on := _first_outside_brackets(words, start, end, {"ON"})) < end:
        first = start = on + 1  # the last ON counts: earlier ones belong to joins
    if first is None:
        return
    end = _first_outside_brackets(words, first, end, _AFTER_PIVOT_ON)
    while first < end:
        comma = _first_outside_brackets(words, first, end, {","})
        yield first, comma
        first = comma + 1


def _first_outside_brackets(
    words: Sequence[str], start: int, end: int, wanted: AbstractSet[str]
) -> int:
    """Return the index of the first wanted word outside brackets opened since start, or end."""
    depth = 0
    for index in range(start, end):
        if depth == 0 and words[index] in wanted:
            return index
        depth += (words[index] in _OPENING) - (words[index] in _CLOSING)
    return end


def _refusal(reason: str, *, hint: str) -> UsageError:
    return UsageError("cannot run this query", reason=reason, hint=hint)
