#include "gateway/conf_tree.h"

#include <ctype.h>
#include <stdio.h>
#include <yaml.h>

/* The file as a tree of nodes with positions. libyaml's events are read directly, not its
 * documents: that refuses aliases, depth and size before anything is built from them, and keeps the
 * place of every key and value. */

/* Lines and columns of libyaml count from 0. */
static size_t mark_line(yaml_mark_t mark)
{
    return mark.line + 1;
}

static size_t mark_column(yaml_mark_t mark)
{
    return mark.column + 1;
}

void *conf_room(struct conf_loader *loader, size_t count, size_t each)
{
    void *room = arena_alloc(loader->arena, (count > 0 ? count : 1) * each);
    ASSERT(room != NULL);
    return room;
}

char *conf_text(struct conf_loader *loader, struct span text)
{
    char *copy = conf_room(loader, text.len + 1, 1);
    if (text.len > 0) {
        memcpy(copy, text.data, text.len);
    }
    return copy;
}

char *conf_textf(struct conf_loader *loader, const char *format, ...)
{
    struct buf out;
    buf_init(&out, CONF_BYTES_MAX);
    va_list args;
    va_start(args, format);
    int status = buf_vprintf(&out, format, args);
    va_end(args);
    ASSERT(status == ERR_OK);
    char *text = conf_text(loader, buf_span(&out));
    buf_release(&out);
    return text;
}

void conf_secret_keep(struct conf_loader *loader, char *text)
{
    struct conf_secret *secret = conf_room(loader, 1, sizeof *secret);
    *secret = (struct conf_secret){
        .next = loader->keep->secrets, .text = text, .len = strlen(text)};
    loader->keep->secrets = secret;
}

void conf_path_join(char out[CONF_PATH_MAX], const char *prefix, const char *key)
{
    /* Longer paths only come from keys no option has; cutting them only shortens a message. */
    (void)snprintf(out, CONF_PATH_MAX, "%.150s%s%.100s", prefix, prefix[0] != '\0' ? "." : "", key);
}

const char *conf_environment_get(const char *const *environment, struct span name)
{
    for (size_t i = 0; environment != NULL && environment[i] != NULL; i++) {
        struct span entry = span_of(environment[i]);
        if (span_starts(entry, name) && entry.len > name.len && entry.data[name.len] == '=') {
            return entry.data + name.len + 1;
        }
    }
    return NULL;
}

struct conf_node *node_new(struct conf_loader *loader, enum conf_node_kind kind)
{
    struct conf_node *node = conf_room(loader, 1, sizeof *node);
    node->kind = kind;
    return node;
}

void node_append(struct conf_node *parent, struct conf_node *child)
{
    child->next = NULL;
    if (parent->last != NULL) {
        parent->last->next = child;
    } else {
        parent->first = child;
    }
    parent->last = child;
    parent->count++;
}

void node_remove(struct conf_node *parent, struct conf_node *child)
{
    struct conf_node *before = NULL;
    for (struct conf_node *at = parent->first; at != NULL; before = at, at = at->next) {
        if (at != child) {
            continue;
        }
        if (before != NULL) {
            before->next = at->next;
        } else {
            parent->first = at->next;
        }
        if (parent->last == at) {
            parent->last = before;
        }
        parent->count--;
        return;
    }
}

struct conf_node *node_child(const struct conf_node *map, const char *key)
{
    if (map == NULL || map->kind != CONF_NODE_MAP) {
        return NULL;
    }
    for (struct conf_node *at = map->first; at != NULL; at = at->next) {
        if (strcmp(at->key, key) == 0) {
            return at;
        }
    }
    return NULL;
}

static struct conf_node *node_item(const struct conf_node *list, struct span digits)
{
    uint64_t index = 0;
    if (span_to_u64(digits, CONF_NODES_MAX, &index) != 0) {
        return NULL;
    }
    struct conf_node *at = list->first;
    for (; at != NULL && index > 0; index--) {
        at = at->next;
    }
    return at;
}

struct conf_node *node_at(const struct conf_node *root, const char *path)
{
    const struct conf_node *at = root;
    struct span rest = span_of(path);
    while (at != NULL && rest.len > 0) {
        struct span part = span_cut(&rest, '.');
        if (at->kind == CONF_NODE_LIST) {
            at = node_item(at, part);
            continue;
        }
        char key[CONF_PATH_MAX];
        (void)snprintf(key, sizeof key, "%.*s", SPAN_FMT(part));
        at = node_child(at, key);
    }
    return (struct conf_node *)(uintptr_t)at;
}

struct conf_node *node_add_text(struct conf_loader *loader, struct conf_node *map, const char *key,
                                const char *text, enum conf_origin origin)
{
    struct conf_node *node = node_new(loader, CONF_NODE_SCALAR);
    node->key = conf_text(loader, span_of(key));
    node->text = conf_text(loader, span_of(text));
    node->origin = origin;
    node->line = map->line;
    node->column = map->column;
    node->key_line = map->line;
    node->key_column = map->column;
    node_append(map, node);
    return node;
}

bool node_is_null(const struct conf_node *node)
{
    return node->kind == CONF_NODE_SCALAR && node->is_plain &&
           (node->text[0] == '\0' || strcmp(node->text, "~") == 0 ||
            strcmp(node->text, "null") == 0);
}

const char *node_text(const struct conf_node *map, const char *key)
{
    const struct conf_node *node = node_child(map, key);
    return node != NULL && node->kind == CONF_NODE_SCALAR ? node->text : "";
}

/* ---- Events to nodes ---- */

struct builder {
    struct conf_loader *loader;
    struct conf_node *open[CONF_DEPTH_MAX];
    size_t depth;
    const char *key; /* read, its value not yet */
    size_t key_line, key_column;
    struct conf_node *root;
    bool failed; /* a mistake that makes reading on useless */
};

static void build_fail(struct builder *b, yaml_mark_t mark, const char *message,
                       const char *expected)
{
    conf_mistake_at(b->loader, mark_line(mark), mark_column(mark), "", expected, "%s", message);
    b->failed = true;
}

/* Whether the next node of the innermost map is a key. */
static bool wants_key(const struct builder *b)
{
    return b->depth > 0 && b->open[b->depth - 1]->kind == CONF_NODE_MAP && b->key == NULL;
}

static void take_key(struct builder *b, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    struct span key = span_make(text, event->data.scalar.length);
    if (b->open[b->depth - 1]->count >= CONF_KEYS_MAX) {
        build_fail(b, event->start_mark, "the section has too many keys", "");
        return;
    }
    if (key.len == 0 || memchr(key.data, '\0', key.len) != NULL) {
        build_fail(b, event->start_mark, "a key must be a text", "");
        return;
    }
    b->key = conf_text(b->loader, key);
    b->key_line = mark_line(event->start_mark);
    b->key_column = mark_column(event->start_mark);
    const struct conf_node *same = node_child(b->open[b->depth - 1], b->key);
    if (same != NULL) {
        conf_mistake_at(b->loader, b->key_line, b->key_column, b->key, "",
                        "\"%.80s\" stands here a second time; the first is on line %zu", b->key,
                        same->key_line);
    }
}

static struct conf_node *place_node(struct builder *b, enum conf_node_kind kind, yaml_mark_t mark)
{
    if (++b->loader->node_count > CONF_NODES_MAX) {
        build_fail(b, mark, "the file has more than 50000 values", "");
        return NULL;
    }
    if (wants_key(b)) {
        build_fail(b, mark, "a key must be a text, not a list or section", "");
        return NULL;
    }
    struct conf_node *node = node_new(b->loader, kind);
    node->line = mark_line(mark);
    node->column = mark_column(mark);
    if (b->depth == 0) {
        b->root = node;
        return node;
    }
    struct conf_node *parent = b->open[b->depth - 1];
    if (parent->kind == CONF_NODE_MAP) {
        node->key = b->key;
        node->key_line = b->key_line;
        node->key_column = b->key_column;
        b->key = NULL;
    }
    node_append(parent, node);
    return node;
}

static void take_scalar(struct builder *b, const yaml_event_t *event)
{
    if (wants_key(b)) {
        take_key(b, event);
        return;
    }
    struct conf_node *node = place_node(b, CONF_NODE_SCALAR, event->start_mark);
    if (node == NULL) {
        return;
    }
    struct span text = span_make((const char *)event->data.scalar.value, event->data.scalar.length);
    if (memchr(text.data, '\0', text.len) != NULL) {
        build_fail(b, event->start_mark, "a value must not hold a NUL character", "");
        return;
    }
    node->text = conf_text(b->loader, text);
    node->is_plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

static void open_node(struct builder *b, enum conf_node_kind kind, yaml_mark_t mark)
{
    if (b->depth == CONF_DEPTH_MAX) {
        build_fail(b, mark, "sections are nested too deep", "at most 20 levels");
        return;
    }
    struct conf_node *node = place_node(b, kind, mark);
    if (node != NULL) {
        b->open[b->depth++] = node;
    }
}

/* True when the stream has ended. */
static bool take_event(struct builder *b, const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_STREAM_END_EVENT:
        return true;
    case YAML_DOCUMENT_START_EVENT:
        if (b->root != NULL) {
            build_fail(b, event->start_mark, "the file holds a second document",
                       "one document, without \"---\"");
        }
        return false;
    case YAML_SCALAR_EVENT:
        take_scalar(b, event);
        return false;
    case YAML_MAPPING_START_EVENT:
        open_node(b, CONF_NODE_MAP, event->start_mark);
        return false;
    case YAML_SEQUENCE_START_EVENT:
        open_node(b, CONF_NODE_LIST, event->start_mark);
        return false;
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        b->depth--;
        return false;
    case YAML_ALIAS_EVENT:
        build_fail(b, event->start_mark, "aliases (*name) are not allowed here",
                   "the value itself");
        return false;
    case YAML_NO_EVENT:
    case YAML_STREAM_START_EVENT:
    case YAML_DOCUMENT_END_EVENT:
        return false;
    }
    return false;
}

static void syntax_mistake(struct conf_loader *loader, const yaml_parser_t *parser)
{
    const char *problem = parser->problem != NULL ? parser->problem : "the text cannot be read";
    const char *context = parser->context != NULL ? parser->context : "";
    bool has_mark = parser->error != YAML_READER_ERROR;
    conf_mistake_at(loader, has_mark ? mark_line(parser->problem_mark) : mark_line(parser->mark),
                    has_mark ? mark_column(parser->problem_mark) : mark_column(parser->mark), "",
                    "", "not valid YAML: %s%s%s", problem, context[0] != '\0' ? " " : "", context);
}

static void build(struct builder *b, yaml_parser_t *parser)
{
    bool at_end = false;
    while (!at_end && !b->failed) {
        yaml_event_t event;
        if (yaml_parser_parse(parser, &event) == 0) {
            syntax_mistake(b->loader, parser);
            b->failed = true;
            return;
        }
        at_end = take_event(b, &event);
        if (event.type == YAML_SCALAR_EVENT) {
            mem_wipe(event.data.scalar.value, event.data.scalar.length);
        }
        yaml_event_delete(&event);
    }
}

struct conf_node *tree_parse(struct conf_loader *loader, struct span bytes)
{
    if (bytes.len > CONF_BYTES_MAX) {
        conf_mistake_at(loader, 0, 0, "", "at most 1 MiB", "the file is too large");
        return NULL;
    }
    yaml_parser_t parser;
    ASSERT(yaml_parser_initialize(&parser) == 1);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)bytes.data, bytes.len);
    struct builder b = {.loader = loader};
    build(&b, &parser);
    yaml_parser_delete(&parser);
    if (b.failed) {
        return NULL;
    }
    if (b.root == NULL || node_is_null(b.root)) {
        conf_mistake_at(loader, 1, 1, "", "", "the file is empty");
        return NULL;
    }
    if (b.root->kind != CONF_NODE_MAP) {
        conf_mistake_at(loader, b.root->line, b.root->column, "", "\"key: value\" lines",
                        "the file is no configuration");
        return NULL;
    }
    return b.root;
}

/* ---- ${NAME} ---- */

static size_t variable_name_len(struct span text)
{
    size_t len = 0;
    while (len < text.len) {
        unsigned char byte = (unsigned char)text.data[len];
        if (byte != '_' && !isalpha(byte) && (len == 0 || !isdigit(byte))) {
            break;
        }
        len++;
    }
    return len;
}

/* `rest` stands behind "${"; appends the value and moves past "}". False when a mistake was
 * reported. */
static bool expand_one(struct conf_loader *loader, const struct conf_node *node, const char *path,
                       struct span *rest, struct buf *out)
{
    size_t len = variable_name_len(*rest);
    if (len == 0 || len == rest->len || rest->data[len] != '}') {
        conf_mistake(loader, node, path, "${NAME}; write $${ where the characters ${ are meant",
                     "\"${\" does not start a variable here");
        return false;
    }
    struct span name = span_make(rest->data, len);
    const char *value = conf_environment_get(loader->environment, name);
    if (value == NULL) {
        conf_mistake(loader, node, path, "", "the environment variable %.*s is not set",
                     SPAN_FMT(name));
        return false;
    }
    *rest = span_make(rest->data + len + 1, rest->len - len - 1);
    loader->expanded_bytes += strlen(value);
    if (loader->expanded_bytes > CONF_EXPANDED_MAX || buf_append(out, span_of(value)) != 0) {
        conf_mistake(loader, node, path, "", "the value of %.*s is too long", SPAN_FMT(name));
        return false;
    }
    return true;
}

static bool expand_into(struct conf_loader *loader, const struct conf_node *node, const char *path,
                        struct buf *out)
{
    struct span rest = span_of(node->text);
    while (rest.len > 0) {
        size_t literal = 1;
        if (span_starts(rest, SPAN_LIT("$${"))) {
            rest = span_make(rest.data + 1, rest.len - 1);
            literal = 2;
        } else if (span_starts(rest, SPAN_LIT("${"))) {
            rest = span_make(rest.data + 2, rest.len - 2);
            if (!expand_one(loader, node, path, &rest, out)) {
                return false;
            }
            continue;
        }
        if (buf_append(out, span_make(rest.data, literal)) != 0) {
            conf_mistake(loader, node, path, "", "the value is too long");
            return false;
        }
        rest = span_make(rest.data + literal, rest.len - literal);
    }
    return true;
}

static void expand_scalar(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (strstr(node->text, "${") == NULL) {
        return;
    }
    struct buf out;
    buf_init_secret(&out, CONF_BYTES_MAX);
    if (expand_into(loader, node, path, &out)) {
        char *text = conf_text(loader, buf_span(&out));
        /* What came from the environment may be a secret whatever option it stands in. */
        conf_secret_keep(loader, text);
        node->text = text;
        node->is_plain = false;
    } else {
        node->is_bad = true;
    }
    buf_release(&out);
}

void tree_expand(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (node->kind == CONF_NODE_SCALAR) {
        expand_scalar(loader, node, path);
        return;
    }
    size_t index = 0;
    for (struct conf_node *at = node->first; at != NULL; at = at->next, index++) {
        char digits[24];
        (void)snprintf(digits, sizeof digits, "%zu", index);
        char below[CONF_PATH_MAX];
        conf_path_join(below, path, at->key != NULL ? at->key : digits);
        tree_expand(loader, at, below);
    }
}

/* ---- Presets ---- */

/* The map `key` of `parent`, made when it is missing or says nothing; NULL when it is something
 * else. */
static struct conf_node *section_of(struct conf_loader *loader, struct conf_node *parent,
                                    const char *key)
{
    struct conf_node *node = node_child(parent, key);
    if (node == NULL) {
        node = node_add_text(loader, parent, key, "", CONF_FROM_DEFAULT);
        node->is_plain = true;
    }
    if (node_is_null(node)) {
        node->kind = CONF_NODE_MAP;
    }
    return node->kind == CONF_NODE_MAP ? node : NULL;
}

void tree_presets(struct conf_loader *loader, struct conf_node *root)
{
    size_t count = 0;
    const struct conf_preset *presets = conf_presets(&count);
    for (size_t i = 0; i < count; i++) {
        struct span rest = span_of(presets[i].path);
        char *section_key = conf_text(loader, span_cut(&rest, '.'));
        char *name = conf_text(loader, span_cut(&rest, '.'));
        struct conf_node *section = section_of(loader, root, section_key);
        struct conf_node *entry = section != NULL ? section_of(loader, section, name) : NULL;
        if (entry != NULL && node_child(entry, rest.data) == NULL) {
            (void)node_add_text(loader, entry, rest.data, presets[i].value, CONF_FROM_DEFAULT);
        }
    }
}

/* ---- HEAVE_SECTION__KEY ---- */

/* A walk along one variable's name. */
struct override {
    struct span name; /* HEAVE_QUEUE__MAX_BYTES */
    const char *value;
    char pattern[CONF_PATH_MAX]; /* rows' path so far, "backends.*" */
    char path[CONF_PATH_MAX];    /* real path so far, "backends.acs" */
    struct conf_node *at;
};

static void override_mistake(struct conf_loader *loader, const struct override *o, const char *what)
{
    conf_mistake_at(loader, 0, 0, o->path, "", "environment variable %.*s: %s", SPAN_FMT(o->name),
                    what);
}

static void lower_word(struct span word, char out[CONF_PATH_MAX])
{
    size_t len = word.len < CONF_PATH_MAX - 1 ? word.len : CONF_PATH_MAX - 1;
    for (size_t i = 0; i < len; i++) {
        out[i] = (char)tolower((unsigned char)word.data[i]);
    }
    out[len] = '\0';
}

/* Environment names hold neither lower case nor dashes: "eu-west" is EU_WEST. */
static bool name_matches(const char *key, const char *word)
{
    for (; *key != '\0' && *word != '\0'; key++, word++) {
        char folded = *key == '-' || *key == '.' ? '_' : (char)tolower((unsigned char)*key);
        if (folded != *word) {
            return false;
        }
    }
    return *key == *word;
}

static struct conf_node *entry_by_word(struct conf_node *parent, const char *word)
{
    if (parent->kind == CONF_NODE_LIST) {
        return node_item(parent, span_of(word));
    }
    for (struct conf_node *at = parent->first; at != NULL; at = at->next) {
        if (name_matches(at->key, word)) {
            return at;
        }
    }
    return NULL;
}

/* Takes a step into a section by its fixed key, or into an entry of a list or named section. */
static bool override_step(struct conf_loader *loader, struct override *o, const char *word)
{
    bool twin = false;
    const struct conf_option *option = conf_option_find(o->pattern, word, &twin);
    char joined[CONF_PATH_MAX];
    if (option != NULL) {
        struct conf_node *next = node_child(o->at, word);
        if (next == NULL && option->type == CONF_MAP && o->at->kind == CONF_NODE_MAP) {
            next = section_of(loader, o->at, word);
        }
        o->at = next;
    } else {
        o->at = entry_by_word(o->at, word);
        (void)snprintf(joined, sizeof joined, "*");
    }
    if (o->at == NULL) {
        return false;
    }
    char pattern[CONF_PATH_MAX];
    conf_path_join(pattern, o->pattern, option != NULL ? word : joined);
    memcpy(o->pattern, pattern, sizeof pattern);
    char path[CONF_PATH_MAX];
    conf_path_join(path, o->path, o->at->key != NULL ? o->at->key : word);
    memcpy(o->path, path, sizeof path);
    return true;
}

/* The items of a plain list, commas between them. */
static void override_items(struct conf_loader *loader, struct conf_node *list,
                           const struct override *o)
{
    struct span rest = span_of(o->value);
    while (rest.len > 0) {
        struct span word = span_trim(span_cut(&rest, ','));
        if (word.len == 0) {
            continue;
        }
        struct conf_node *item = node_new(loader, CONF_NODE_SCALAR);
        item->text = conf_text(loader, word);
        item->origin = CONF_FROM_ENVIRONMENT;
        item->variable = list->variable;
        node_append(list, item);
    }
}

static void override_leaf(struct conf_loader *loader, struct override *o, const char *word)
{
    bool twin = false;
    const struct conf_option *option = conf_option_find(o->pattern, word, &twin);
    if (option == NULL || o->at->kind != CONF_NODE_MAP) {
        override_mistake(loader, o, "there is no such option");
        return;
    }
    if (option->type <= CONF_LIST) {
        override_mistake(loader, o, "only single values and plain lists can be overridden");
        return;
    }
    const char *other = twin ? conf_option_key(option)
                             : conf_textf(loader, "%s_file", conf_option_key(option));
    const char *const gone[] = {word, other};
    for (size_t i = 0; i < 2; i++) {
        struct conf_node *old = node_child(o->at, gone[i]);
        if (old != NULL && (i == 0 || option->type == CONF_SECRET)) {
            node_remove(o->at, old);
        }
    }
    struct conf_node *node = node_add_text(loader, o->at, word, o->value, CONF_FROM_ENVIRONMENT);
    node->variable = conf_text(loader, o->name);
    if (conf_type_is_list(option->type)) {
        node->kind = CONF_NODE_LIST;
        override_items(loader, node, o);
    }
}

static size_t find_double_underscore(struct span text)
{
    return span_search(text, SPAN_LIT("__"));
}

static void override_apply(struct conf_loader *loader, struct conf_node *root, struct span name,
                           const char *value)
{
    struct override o = {.name = name, .value = value, .at = root};
    struct span rest = span_make(name.data + 6, name.len - 6);
    char word[CONF_PATH_MAX];
    size_t cut = find_double_underscore(rest);
    while (cut < rest.len) {
        lower_word(span_make(rest.data, cut), word);
        if (!override_step(loader, &o, word)) {
            override_mistake(loader, &o, "there is no such section or entry in the file");
            return;
        }
        rest = span_make(rest.data + cut + 2, rest.len - cut - 2);
        cut = find_double_underscore(rest);
    }
    lower_word(rest, word);
    override_leaf(loader, &o, word);
}

/* HEAVE_HOSTNAME counts; other names without "__" may be anybody's (HEAVE_API_KEY, what Kubernetes
 * sets for a service). */
static bool is_top_option(struct span word)
{
    char key[CONF_PATH_MAX];
    lower_word(word, key);
    bool twin = false;
    const struct conf_option *option = conf_option_find("", key, &twin);
    return option != NULL && option->type > CONF_LIST;
}

void tree_override(struct conf_loader *loader, struct conf_node *root)
{
    for (size_t i = 0; loader->environment != NULL && loader->environment[i] != NULL; i++) {
        struct span entry = span_of(loader->environment[i]);
        struct span name = span_make(entry.data, span_find(entry, '='));
        if (!span_starts(name, SPAN_LIT("HEAVE_")) || name.len == entry.len) {
            continue;
        }
        struct span word = span_make(name.data + 6, name.len - 6);
        if (find_double_underscore(word) < word.len || is_top_option(word)) {
            override_apply(loader, root, name, name.data + name.len + 1);
        }
    }
}
