"""Frames and texts of live gateways as others published them, each with its source (grade L).

The published logs join the fields of a frame by commas or bars.
"""

BOND_REQUEST = (
    "20,1,0,US912797PA95,BOND,,0.0,,,SMART,,USD,,,0,20250413 21:56:00 UTC,1 day,8 D,1,MIDPOINT,1,0,"
)
"""https://github.com/ib-api-reloaded/ib_async/issues/140: 8 D to 20250413 21:56:00 UTC."""

BOND = (
    "17,1,20250405 17:56:00 US/Eastern,20250413 17:56:00 US/Eastern,8,"
    "20250402,99.77543,99.77636,99.77543,99.77609,-1,-1,-1,"
    "20250403,99.78744,99.78857,99.78743,99.78763,-1,-1,-1,"
    "20250404,99.82271,99.82334,99.82270,99.82302,-1,-1,-1,"
    "20250407,99.83579,99.83619,99.83287,99.83338,-1,-1,-1,"
    "20250408,99.84500,99.84518,99.84427,99.84454,-1,-1,-1,"
    "20250409,99.85642,99.85809,99.85616,99.85808,-1,-1,-1,"
    "20250410,99.86980,99.86998,99.86929,99.86941,-1,-1,-1,"
    "20250411,99.90509,99.90547,99.90508,99.90522,-1,-1,-1"
)
"""The response to ``BOND_REQUEST``: eight sessions."""

EURUSD_HOURS = (
    "17,3,20230112 20:19:28 US/Eastern,20230211 20:19:28 US/Eastern,718,"
    "20221229 17:15:00 US/Eastern,1.06665,1.06665,1.06600,1.06615,-1,-1,-1,"
    "20221229 18:00:00 US/Eastern,1.06615,1.06620,1.06545,1.06605,-1,-1,-1,"
    "20221229 19:00:00 US/Eastern,1.06605,1.06685,1.06590,1.06685,-1,-1,-1"
)
"""https://github.com/erdewit/ib_insync/issues/555: the first 3 of 718 bars."""

TESLA_DAYS = (
    "17|9000|20230413  16:31:22|20230415  16:31:22|2|"
    "20230413|182.9400|186.5000|180.9400|185.9000|948837.22|184.869|324891|"
    "20230414|183.8800|186.2800|182.0100|185.0000|810998.27|183.9865|277547"
)
"""https://github.com/wboayue/rust-ibapi: the fixture of a test; volume in lots, no zone."""

TESLA_DETAILS = (
    "10|9001|TSLA|STK||0||SMART|USD|TSLA|NMS|NMS|76792991|0.01||ACTIVETIM,AD|SMART,AMEX|1|0|"
    "TESLA INC|NASDAQ||Consumer, Cyclical|Auto Manufacturers|Auto-Cars/Light Trucks|US/Eastern|"
    "20221229:0400-20221229:2000;20221230:0400-20221230:2000;20221231:CLOSED;20230101:CLOSED;"
    "20230102:CLOSED;20230103:0400-20230103:2000|"
    "20221229:0930-20221229:1600;20221230:0930-20221230:1600;20221231:CLOSED;20230101:CLOSED;"
    "20230102:CLOSED;20230103:0930-20230103:1600|||1|ISIN|US88160R1014|1|||26,26||COMMON|1|1|100|"
)
"""The same repository; lists of order types and exchanges are shortened."""

MES_DETAILS = (
    "10,7,MES,FUT,20260320 14:30:00 Europe/Zurich,0,,CME,USD,MESH6,MES,MES,750150186,0.25,5,"
    "ACTIVETIM;AD,CME,1,362673777,Micro E-Mini S&P 500 Stock Price Index,,202603,,,,US/Central,"
    "20251222:1700-20251223:1600;20251223:1700-20251224:1215;20251225:1700-20251226:1600;"
    "20251227:CLOSED;20251228:1700-20251229:1600,"
    "20251223:0830-20251223:1600;20251224:0830-20251224:1215;20251225:CLOSED"
)
"""https://github.com/ib-api-reloaded/ib_async/issues/128: the fields up to the hours, with
fewer order types; the log cuts the last hours."""

BAR_SIZE_REFUSED = (
    "Error validating request.-'bK' : cause - Historical data bar size setting is invalid. Legal "
    "ones are: 1 secs, 5 secs, 10 secs, 15 secs, 30 secs, 1 min, 2 mins, 3 mins, 5 mins, 10 mins, "
    "15 mins, 20 mins, 30 mins, 1 hour, 2 hours, 3 hours, 4 hours, 8 hours, 1 day, 1W, 1M"
)
"""https://github.com/wboayue/rust-ibapi/pull/245 (2025-05-13): the text of 321 for ``1 sec``."""
