/* Inside of the configuration: the option table, the tree of the file, and the steps that join
 * them.
 *
 * For conf*.c alone; everybody else uses conf.h. Loading is a pipeline over one tree of nodes:
 *
 *     bytes ─ tree_parse ─► nodes with positions ─ tree_expand ─► ${NAME} replaced ─ tree_presets
 * ─► named defaults added ─ tree_override ─► HEAVE_… applied ─ convert_defaults ─► computed
 * defaults added ─ check_tree ─► typed, bounded, defaults added ─ convert_tree ─► struct conf
 *
 * Each step adds its mistakes to the report and goes on, so that one run shows them all. Thread:
 * one loading thread; the tree is read-only afterwards. Nodes live in the arena of the snapshot. */
#ifndef HEAVE_GATEWAY_CONF_TREE_H
#define HEAVE_GATEWAY_CONF_TREE_H

#include "gateway/conf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONF_BYTES_MAX ((size_t)1 << 20)
#define CONF_DEPTH_MAX 20
#define CONF_NODES_MAX 50000
#define CONF_KEYS_MAX 1000 /* in one map: keeps the search for repeated keys short */
#define CONF_ARENA_MAX ((size_t)64 << 20)
#define CONF_PATH_MAX 256
#define CONF_SECRET_FILE_MAX 65536
#define CONF_EXPANDED_MAX ((size_t)4 << 20)

/* What a value is. The first four are structure, then one value each, then plain lists of values.
 */
enum conf_type {
    CONF_MAP,   /* fixed keys: rows "path.key" */
    CONF_NAMED, /* keys chosen by the user, each a map: rows "path.*.key" */
    CONF_LIST,  /* list of maps: rows "path.*.key" */
    CONF_STRING,
    CONF_BOOL,
    CONF_INT,
    CONF_PERCENT,
    CONF_DURATION,
    CONF_SIZE,
    CONF_ENUM,
    CONF_LADDER,
    CONF_SECRET,  /* has a _file twin, is never shown, is wiped */
    CONF_FILE,    /* path of a file that must be readable */
    CONF_PATH,    /* path that need not exist */
    CONF_URL,     /* https://... */
    CONF_ADDRESS, /* local@domain */
    CONF_BIND,    /* host:port */
    CONF_STRINGS,
    CONF_ENUMS,
    CONF_NETWORKS,
    CONF_DOMAINS,
    CONF_PATTERNS, /* sender patterns */
    CONF_ADDRESSES,
    CONF_RATES,
};

enum conf_option_flag {
    CONF_REQUIRED = 1u << 0,
    CONF_SELECTOR = 1u << 1,  /* its value decides which of its siblings apply */
    CONF_NOT_YET = 1u << 2,   /* known, refused by this version */
    CONF_HAS_SECRET = 1u << 3 /* a text with a password inside (redis://user:password@host) */
};

enum conf_reload {
    CONF_RESTART,
    CONF_LIVE,
};

/* One row of the option table. */
struct conf_option {
    const char *path; /* "backends.*.host" */
    enum conf_type type;
    const char *values;        /* CONF_ENUM, CONF_ENUMS: "off|starttls|implicit" */
    const char *values_later;  /* the same for values this version refuses */
    const char *fallback;      /* default as it would stand in the file; NULL: none */
    const char *fallback_note; /* default in words, where it is computed */
    const char *applies;       /* values of the selector, "hve|smtp"; NULL: all */
    int64_t min, max; /* numbers, milliseconds, bytes; both 0: any. Structure: max entries */
    uint32_t flags;
    enum conf_reload reload;
    const char *help;
};

/* A default that belongs to one name: "lanes.alert.share" = "50%". The name is added when the file
 * leaves it out. */
struct conf_preset {
    const char *path;
    const char *value;
};

const struct conf_option *conf_options(size_t *out_count);
const struct conf_preset *conf_presets(size_t *out_count);
/* The row "prefix.key" (prefix "": "key"); `*out_twin` when key is the _file twin of a secret.
 * NULL: unknown. */
const struct conf_option *conf_option_find(const char *prefix, const char *key, bool *out_twin);
/* The last part of the row's path. */
const char *conf_option_key(const struct conf_option *option);
/* Whether the row is a direct child of `prefix`. */
bool conf_option_under(const struct conf_option *option, const char *prefix);
/* Whether `word` is one of "a|b|c"; its index in `*out_index` when not NULL. */
bool conf_word_in(const char *words, struct span word, int64_t *out_index);
/* "number", "duration such as 30s or 5m": for messages and the reference. */
const char *conf_type_text(enum conf_type type);
bool conf_type_is_list(enum conf_type type);

enum conf_origin {
    CONF_FROM_FILE,
    CONF_FROM_ENVIRONMENT,
    CONF_FROM_DEFAULT,
};
enum conf_node_kind {
    CONF_NODE_SCALAR,
    CONF_NODE_MAP,
    CONF_NODE_LIST,
};
struct conf_node {
    enum conf_node_kind kind;
    const char *key; /* in a map; NULL in a list */
    size_t line, column;
    size_t key_line, key_column;
    const char *text; /* scalar */
    bool is_plain;    /* scalar without quotes */
    enum conf_origin origin;
    const char *variable; /* CONF_FROM_ENVIRONMENT: its name */
    struct conf_node *first, *last, *next;
    size_t count;
    /* Written by check_tree: */
    const struct conf_option *option;
    bool is_bad;    /* a mistake was reported: use a harmless value */
    int64_t number; /* INT, PERCENT, DURATION (ms), SIZE, ENUM (index), BOOL */
};

/* What the steps share. */
struct conf_private {
    struct arena arena;
    _Atomic uint32_t references;
    struct conf_node *root;
    struct conf_secret *secrets; /* what has to be wiped */
};
struct conf_secret {
    struct conf_secret *next;
    char *text;
    size_t len;
};
struct conf_loader {
    struct conf_private *keep;
    struct arena *arena; /* keep->arena */
    struct conf_report *report;
    const char *file;
    const char *folder; /* of the file, with the final '/', or "" */
    const char *const *environment;
    size_t node_count;
    size_t expanded_bytes; /* of all ${NAME} so far */
};

/* Adds a mistake at a place; `path` and the texts are copied. */
void conf_mistake_at(struct conf_loader *loader, size_t line, size_t column, const char *path,
                     const char *expected, const char *format, ...) PRINTF_LIKE(6, 7);
/* At a node's value; values of the environment name their variable. */
void conf_mistake(struct conf_loader *loader, const struct conf_node *node, const char *path,
                  const char *expected, const char *format, ...) PRINTF_LIKE(5, 6);

/* Arena helpers; they abort when the arena's maximum is reached, which node and byte limits keep
 * out of reach. */
void *conf_room(struct conf_loader *loader, size_t count, size_t each);
char *conf_text(struct conf_loader *loader, struct span text);
char *conf_textf(struct conf_loader *loader, const char *format, ...) PRINTF_LIKE(2, 3);
/* Remembers text in the arena that must be wiped. */
void conf_secret_keep(struct conf_loader *loader, char *text);

/* "prefix.key", cut when too long (names are bounded). */
void conf_path_join(char out[CONF_PATH_MAX], const char *prefix, const char *key);
/* What an environment of "NAME=value" says; NULL: not set. */
const char *conf_environment_get(const char *const *environment, struct span name);

/* Reads what is left of `fd`. Errors: ERR_IO, ERR_LIMIT, ERR_NOMEM. */
MUST_USE int conf_read_all(int fd, struct buf *out);

/* Child of a map by key; NULL. */
struct conf_node *node_child(const struct conf_node *map, const char *key);
/* The node at "lanes.alert.retry" or "listeners.0.bind"; NULL. */
struct conf_node *node_at(const struct conf_node *root, const char *path);
struct conf_node *node_new(struct conf_loader *loader, enum conf_node_kind kind);
void node_append(struct conf_node *parent, struct conf_node *child);
void node_remove(struct conf_node *parent, struct conf_node *child);
/* Adds map key = text with the given origin, placed at the map. */
struct conf_node *node_add_text(struct conf_loader *loader, struct conf_node *map, const char *key,
                                const char *text, enum conf_origin origin);
/* Whether the node says nothing: plain empty, "~" or "null". */
bool node_is_null(const struct conf_node *node);
/* Text of a scalar child, "" when it is missing or no scalar. */
const char *node_text(const struct conf_node *map, const char *key);

/* The steps. NULL root: the bytes were no YAML map; the mistake is in the report. */
struct conf_node *tree_parse(struct conf_loader *loader, struct span bytes);
void tree_expand(struct conf_loader *loader, struct conf_node *node, const char *path);
void tree_presets(struct conf_loader *loader, struct conf_node *root);
void tree_override(struct conf_loader *loader, struct conf_node *root);
void check_tree(struct conf_loader *loader, struct conf_node *root);
/* One value or plain list whose row is known. */
void check_value(struct conf_loader *loader, struct conf_node *node, const char *path);
/* Reads the file a _file twin names: its content becomes the node's text. Reports what fails and
 * marks the node bad. */
void check_twin_file(struct conf_loader *loader, struct conf_node *twin, const char *path);
/* "off, starttls or implicit" of "off|starttls|implicit". */
const char *check_words_text(struct conf_loader *loader, const char *words);
/* The known name nearest to a wrong one, or NULL. */
const char *check_nearest(const char *wrong, const char *const *known, size_t count);
/* Fills `conf`; reports what only shows between options (unknown names, impossible combinations).
 */
void convert_tree(struct conf_loader *loader, struct conf_node *root, struct conf *conf);
/* Defaults that depend on the machine or on a backend's type; before check_tree. */
void convert_defaults(struct conf_loader *loader, struct conf_node *root);

/* The second half of convert_tree: credentials, backends, routes, clients (conf_convert_mail.c). */
void convert_mail(struct conf_loader *loader, struct conf_node *root, struct conf *conf);

/* `queue.redis` (conf_convert_redis.c). False: a mistake was reported, or there is no value.
 * out->use_tls may be set before. */
bool convert_redis(struct conf_loader *loader, const struct conf_node *node,
                   struct conf_queue *out);
/* Options that say nothing for the kind of Redis that was chosen. */
void check_redis(struct conf_loader *loader, const struct conf_node *node,
                 const struct conf_queue *queue);

/* What both halves read nodes with; a missing or bad node reads as 0, NULL, none. */
struct conf_node *read_section(const struct conf_node *map, const char *key);
uint64_t read_number_of(const struct conf_node *map, const char *key);
const char *read_text(const struct conf_node *map, const char *key);
void read_strings(struct conf_loader *loader, const struct conf_node *map, const char *key,
                  const char *const **out_texts, size_t *out_count);
/* Bits 1 << index of the words of a CONF_ENUMS. */
uint32_t read_bits(const struct conf_node *map, const char *key);
/* A mistake at map's child `key`, or at the map when there is none; `path` is the map's. */
void convert_mistake(struct conf_loader *loader, const struct conf_node *map, const char *path,
                     const char *key, const char *expected, const char *message);
/* Adds a computed default unless the key is there. */
void default_text(struct conf_loader *loader, struct conf_node *map, const char *key,
                  const char *text);

/* Reads a ladder "5s, 15s, 5m*" into at most `room` waits. Errors: ERR_INVAL, ERR_LIMIT. */
MUST_USE int conf_parse_ladder(struct span text, int64_t *out_waits, size_t room, size_t *out_count,
                               bool *out_last_repeats);
#define CONF_LADDER_MAX 64

/* A value as a person would write it: "5m", "50MiB", "30". */
void conf_number_text(enum conf_type type, int64_t number, char *out, size_t out_bytes);

#endif
