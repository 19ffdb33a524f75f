"""The tables of a gallery in PostgreSQL: a schema of its own, named as the gallery."""

FORMAT = "1"

CREATE = (
    "CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public",
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    "CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL)",
    "CREATE TABLE contents (sha256 bytea PRIMARY KEY, regions bytea NOT NULL, crc bigint NOT NULL)",
    "ALTER TABLE contents ALTER COLUMN regions SET STORAGE EXTERNAL",
    'CREATE TABLE images (id text COLLATE "C" PRIMARY KEY, sha256 bytea NOT NULL REFERENCES contents, '
    "metadata jsonb NOT NULL, vector vector({dim}) NOT NULL)",
    "CREATE INDEX images_sha256 ON images (sha256)",
    "CREATE INDEX images_metadata ON images USING gin (metadata jsonb_path_ops)",
    # Every value that a column ever had: by these a filter is read as a file's is.
    'CREATE TABLE column_values (name text COLLATE "C", value text COLLATE "C", PRIMARY KEY (name, value))',
)
CREATE_INDEX = "CREATE INDEX IF NOT EXISTS images_vector ON images USING hnsw ((vector::halfvec({dim})) halfvec_ip_ops)"

KNOWN = "SELECT sha256 FROM contents WHERE sha256 = ANY(%s)"
COPY_CONTENTS = "COPY contents (sha256, regions, crc) FROM STDIN (FORMAT BINARY)"
COPY_IMAGES = "COPY images (id, sha256, metadata, vector) FROM STDIN (FORMAT BINARY)"
LINK_IMAGE = (
    "INSERT INTO images (id, sha256, metadata, vector) "
    "SELECT %s, sha256, %s, vector FROM images WHERE sha256 = %s ORDER BY id LIMIT 1 "
    "ON CONFLICT (id) DO UPDATE SET sha256 = excluded.sha256, metadata = excluded.metadata, vector = excluded.vector"
)
PUT_VALUES = "INSERT INTO column_values SELECT * FROM unnest(%s::text[], %s::text[]) ON CONFLICT DO NOTHING"
CONTENTS_OF = "SELECT sha256 FROM images WHERE id = ANY(%s)"
DELETE = "DELETE FROM images WHERE id = ANY(%s) RETURNING sha256"
DELETE_UNUSED = (
    "DELETE FROM contents WHERE sha256 = ANY(%s) "
    "AND NOT EXISTS (SELECT FROM images WHERE images.sha256 = contents.sha256)"
)
FETCH = "SELECT id, sha256, vector, metadata, regions, crc FROM images JOIN contents USING (sha256) WHERE id = ANY(%s)"
FETCH_BARE = "SELECT id, sha256, vector, metadata, ''::bytea, 0 FROM images WHERE id = ANY(%s)"
IDS = "SELECT id FROM images WHERE id > %s AND starts_with(id, %s) ORDER BY id LIMIT %s"

COUNT = "SELECT count(*) FROM (SELECT FROM images WHERE {where} LIMIT %s) AS counted"
ESTIMATE = "EXPLAIN (FORMAT JSON) SELECT FROM images WHERE {where}"
# The index is of half-precision numbers, so an order by the vectors themselves reads all of them.
EXACT = "SELECT id, vector FROM images WHERE {where} ORDER BY vector <#> %s, id LIMIT %s"
NEAREST = "SELECT id, vector FROM images WHERE {where} ORDER BY vector::halfvec({dim}) <#> %s::halfvec({dim}) LIMIT %s"
# An image without the column is a group of its own.
GROUPS = """
    SELECT id, vector, count(*) OVER () FROM (
        SELECT DISTINCT ON (value, alone) id, vector, metadata->>%s AS value,
        CASE WHEN metadata->>%s IS NULL THEN id END AS alone, vector <#> %s AS distance
        FROM images WHERE {where} ORDER BY value, alone, distance, id
    ) AS best ORDER BY distance, id LIMIT %s"""

INFO = "SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM contents), pg_is_in_recovery(), version()"
COLUMNS = "SELECT DISTINCT name FROM column_values ORDER BY name"
COUNT_VALUES = "SELECT count(*) FROM column_values WHERE name = %s"
VALUES = "SELECT value FROM column_values WHERE name = %s ORDER BY value"
META, PUT_META = "SELECT key, value FROM meta", "INSERT INTO meta VALUES (%s, %s)"
SHARDS = "SELECT substr(key, 7), value FROM meta WHERE left(key, 6) = 'shard:'"
PUT_SHARD = "INSERT INTO meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
EXTENSION = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
EXISTS = "SELECT to_regclass(%s)"
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
SEARCH_PATH = "SET search_path = {schema}, public"
# Composed queries lie beside the images, where a narrow search of the graph misses whole clusters: of 100,000 images it
# found 88 % of the best hundred at 200, and 99 % at 800 (docs/results/stores.md).
SETTINGS = "SET hnsw.ef_search = 1000; SET hnsw.iterative_scan = strict_order"
