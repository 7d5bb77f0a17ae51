#include "gateway/conf_tree.h"

#include <jansson.h>
#include <stdio.h>

/* Pages made from the option table: reference, JSON Schema, effective values; and the report as
 * JSON. */

/* ---- JSON ---- */

/* Values and messages may hold any bytes of the environment; JSON holds UTF-8 only. */
static json_t *json_text(const char *text)
{
    json_t *value = json_string(text);
    return value != NULL ? value : json_string("(not UTF-8)");
}

static int dump_some(const char *bytes, size_t len, void *ctx)
{
    return buf_append(ctx, span_make(bytes, len)) == ERR_OK ? 0 : -1;
}

/* Takes `value`. */
static int append_json(json_t *value, struct buf *out)
{
    int status = json_dump_callback(value, dump_some, out, JSON_INDENT(2) | JSON_REAL_PRECISION(4));
    json_decref(value);
    return status == 0 ? buf_append_byte(out, '\n') : ERR_LIMIT;
}

int conf_report_print_json(const struct conf_report *report, struct buf *out)
{
    json_t *mistakes = json_array();
    for (size_t i = 0; i < report->count; i++) {
        const struct conf_mistake *m = &report->mistakes[i];
        json_t *item = json_object();
        (void)json_object_set_new(item, "line", json_integer((json_int_t)m->line));
        (void)json_object_set_new(item, "column", json_integer((json_int_t)m->column));
        (void)json_object_set_new(item, "path", json_text(m->path));
        (void)json_object_set_new(item, "message", json_text(m->message));
        (void)json_object_set_new(item, "expected", json_text(m->expected));
        (void)json_array_append_new(mistakes, item);
    }
    json_t *all = json_pack("{s:o, s:b, s:b, s:o}", "file", json_text(report->file), "ok",
                            report->count == 0, "cut", report->cut, "mistakes", mistakes);
    return append_json(all, out);
}

/* ---- Reference ---- */

/* Table cells must not end at a '|' of the text. */
static int append_cell(struct buf *out, const char *text)
{
    for (const char *at = text; *at != '\0'; at++) {
        int status = *at == '|' ? buf_append(out, SPAN_LIT(", ")) : buf_append_byte(out, *at);
        if (status != ERR_OK) {
            return status;
        }
    }
    return ERR_OK;
}

static const char *type_name(enum conf_type type)
{
    static const char *const names[] = {
        [CONF_MAP] = "section",
        [CONF_NAMED] = "named sections",
        [CONF_LIST] = "list of sections",
        [CONF_STRING] = "text",
        [CONF_BOOL] = "true, false",
        [CONF_INT] = "number",
        [CONF_PERCENT] = "percentage",
        [CONF_DURATION] = "duration",
        [CONF_SIZE] = "size",
        [CONF_ENUM] = "word",
        [CONF_LADDER] = "ladder",
        [CONF_SECRET] = "secret",
        [CONF_FILE] = "file",
        [CONF_PATH] = "path",
        [CONF_URL] = "https address",
        [CONF_ADDRESS] = "address",
        [CONF_BIND] = "host:port",
        [CONF_STRINGS] = "list of texts",
        [CONF_ENUMS] = "list of words",
        [CONF_NETWORKS] = "networks",
        [CONF_DOMAINS] = "domains",
        [CONF_PATTERNS] = "patterns",
        [CONF_ADDRESSES] = "addresses",
        [CONF_RATES] = "rates",
    };
    return names[type];
}

static int reference_type(const struct conf_option *option, struct buf *out)
{
    int status = append_cell(out,
                             option->values != NULL ? option->values : type_name(option->type));
    bool has_bounds = option->type > CONF_LIST && (option->min != 0 || option->max != 0);
    if (status == ERR_OK && has_bounds) {
        char low[40];
        char high[40];
        conf_number_text(option->type, option->min, low, sizeof low);
        conf_number_text(option->type, option->max, high, sizeof high);
        status = buf_printf(out, ", %s to %s", low, high);
    }
    return status;
}

static int reference_default(const struct conf_option *option, struct buf *out)
{
    if (option->fallback != NULL) {
        return buf_printf(out, "`%s`", option->fallback);
    }
    if (option->fallback_note != NULL) {
        return append_cell(out, option->fallback_note);
    }
    return buf_append(out, span_of((option->flags & CONF_REQUIRED) != 0 ? "required" : ""));
}

static int reference_help(const struct conf_option *option, struct buf *out)
{
    int status = append_cell(out, option->help);
    if (status == ERR_OK && option->applies != NULL) {
        status = buf_append(out, SPAN_LIT(" Only for "));
        status = status == ERR_OK ? append_cell(out, option->applies) : status;
        status = status == ERR_OK ? buf_append_byte(out, '.') : status;
    }
    if (status == ERR_OK && option->values_later != NULL) {
        status = buf_append(out, SPAN_LIT(" Not supported by this version: "));
        status = status == ERR_OK ? append_cell(out, option->values_later) : status;
        status = status == ERR_OK ? buf_append_byte(out, '.') : status;
    }
    if (status == ERR_OK && option->type == CONF_SECRET) {
        status = buf_printf(out, " Or `%s_file`.", conf_option_key(option));
    }
    if (status == ERR_OK && (option->flags & CONF_NOT_YET) != 0) {
        status = buf_append(out, SPAN_LIT(" Not supported by this version."));
    }
    return status;
}

static int reference_row(const struct conf_option *option, struct buf *out)
{
    int status = buf_printf(out, "| `%s` | ", option->path);
    status = status == ERR_OK ? reference_type(option, out) : status;
    status = status == ERR_OK ? buf_append(out, SPAN_LIT(" | ")) : status;
    status = status == ERR_OK ? reference_default(option, out) : status;
    status = status == ERR_OK
                 ? buf_printf(out, " | %s | ", option->reload == CONF_LIVE ? "live" : "restart")
                 : status;
    status = status == ERR_OK ? reference_help(option, out) : status;
    return status == ERR_OK ? buf_append(out, SPAN_LIT(" |\n")) : status;
}

static const char reference_head[] =
    "# Configuration reference\n"
    "\n"
    "Made by `heave config --reference` from the option table of the program; do not edit.\n"
    "\n"
    "One YAML file. A star in an option's name stands for a name of your own or for a place in a list. `${NAME}` in a\n"
    "value is the environment's value (`$${` is a literal `${`); `HEAVE_SECTION__KEY` overrides a single value or a\n"
    "plain list (`HEAVE_QUEUE__MAX_BYTES=1GiB`, `HEAVE_LISTENERS__0__BIND=...`). Durations are `500ms 30s 15m 6h 3d`,\n"
    "sizes `64KiB 50MiB 4GiB`; plain numbers are seconds and bytes. Relative paths start at the folder of the file.\n"
    "*live* options follow a reload (SIGHUP), *restart* options a new start.\n"
    "\n"
    "| Option | Type | Default | Reload | Meaning |\n"
    "|---|---|---|---|---|\n";

int conf_print_reference(struct buf *out)
{
    int status = buf_append(out, span_of(reference_head));
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    for (size_t i = 0; i < count && status == ERR_OK; i++) {
        status = reference_row(&options[i], out);
    }
    const struct conf_preset *presets = conf_presets(&count);
    status = status == ERR_OK ? buf_append(out, SPAN_LIT("\nThe lanes that are always there:\n\n"
                                                         "| Option | Default |\n|---|---|\n"))
                              : status;
    for (size_t i = 0; i < count && status == ERR_OK; i++) {
        status = buf_printf(out, "| `%s` | `%s` |\n", presets[i].path, presets[i].value);
    }
    return status;
}

/* ---- JSON Schema 2020-12 ---- */

/* Any value may be a variable of the environment instead. */
static json_t *schema_or_variable(json_t *schema)
{
    return json_pack("{s:[o, {s:s, s:s}]}", "anyOf", schema, "type", "string", "pattern", "\\$\\{");
}

static json_t *schema_words(const char *words)
{
    json_t *list = json_array();
    struct span rest = span_of(words);
    while (rest.len > 0) {
        struct span word = span_cut(&rest, '|');
        (void)json_array_append_new(list, json_stringn(word.data, word.len));
        if (word.data[0] >= '0' && word.data[0] <= '9') {
            /* YAML reads an unquoted 1.2 as a number. */
            (void)json_array_append_new(list, json_real(strtod(word.data, NULL)));
        }
    }
    return json_pack("{s:o}", "enum", list);
}

static json_t *schema_text(const char *pattern)
{
    json_t *schema = json_pack("{s:s, s:i}", "type", "string", "minLength", 1);
    if (pattern != NULL) {
        (void)json_object_set_new(schema, "pattern", json_string(pattern));
    }
    return schema;
}

static json_t *schema_number(const struct conf_option *option)
{
    json_t *schema = json_pack("{s:s}", "type", "integer");
    if (option->type == CONF_INT && (option->min != 0 || option->max != 0)) {
        (void)json_object_set_new(schema, "minimum", json_integer(option->min));
        (void)json_object_set_new(schema, "maximum", json_integer(option->max));
    }
    return schema;
}

static json_t *schema_list(const char *pattern)
{
    return json_pack("{s:s, s:o}", "type", "array", "items", schema_text(pattern));
}

static json_t *schema_value(const struct conf_option *option)
{
    static const char rate[] = "^[0-9]+r?/[0-9]*(ms|s|m|h|d)$|\\$\\{";
    switch (option->type) {
    case CONF_BOOL:
        return schema_or_variable(json_pack("{s:s}", "type", "boolean"));
    case CONF_INT:
        return schema_or_variable(schema_number(option));
    case CONF_DURATION:
        return json_pack("{s:[o, o]}", "anyOf", schema_number(option),
                         schema_text("^([0-9]+|([0-9]+(d|h|ms|m|s))+)$|\\$\\{"));
    case CONF_SIZE:
        return json_pack("{s:[o, o]}", "anyOf", schema_number(option),
                         schema_text("^[0-9]+ ?(B|kB|KB|MB|GB|KiB|MiB|GiB|TiB)?$|\\$\\{"));
    case CONF_PERCENT:
        return schema_text("^[0-9]+%$|\\$\\{");
    case CONF_ENUM:
        return schema_or_variable(schema_words(option->values));
    case CONF_URL:
        return schema_text("^https://|\\$\\{");
    case CONF_ENUMS:
        return json_pack("{s:s, s:o}", "type", "array", "items",
                         schema_or_variable(schema_words(option->values)));
    case CONF_RATES:
        return schema_list(rate);
    case CONF_STRINGS:
    case CONF_NETWORKS:
    case CONF_DOMAINS:
    case CONF_PATTERNS:
    case CONF_ADDRESSES:
        return schema_list(NULL);
    case CONF_MAP:
    case CONF_NAMED:
    case CONF_LIST:
    case CONF_STRING:
    case CONF_LADDER:
    case CONF_SECRET:
    case CONF_FILE:
    case CONF_PATH:
    case CONF_ADDRESS:
    case CONF_BIND:
        break;
    }
    return schema_text(NULL);
}

static json_t *schema_section(const char *prefix);

static json_t *schema_option(const struct conf_option *option)
{
    char below[CONF_PATH_MAX];
    conf_path_join(below, option->path, "*");
    json_t *schema = NULL;
    if (option->type == CONF_MAP) {
        schema = schema_section(option->path);
    } else if (option->type == CONF_NAMED) {
        schema = json_pack("{s:s, s:o, s:I}", "type", "object", "additionalProperties",
                           schema_section(below), "maxProperties", (json_int_t)option->max);
    } else if (option->type == CONF_LIST) {
        schema = json_pack("{s:s, s:o, s:I}", "type", "array", "items", schema_section(below),
                           "maxItems", (json_int_t)option->max);
    } else {
        schema = schema_value(option);
    }
    (void)json_object_set_new(schema, "description", json_string(option->help));
    if (option->fallback != NULL && !conf_type_is_list(option->type)) {
        (void)json_object_set_new(schema, "default", json_string(option->fallback));
    }
    return schema;
}

static const struct conf_option *selector_of(const char *prefix)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    for (size_t i = 0; i < count; i++) {
        if ((options[i].flags & CONF_SELECTOR) != 0 && conf_option_under(&options[i], prefix)) {
            return &options[i];
        }
    }
    return NULL;
}

/* {"required": ["key"]}, or either key of a secret. */
static json_t *schema_required(const struct conf_option *option)
{
    const char *key = conf_option_key(option);
    json_t *own = json_pack("{s:[s]}", "required", key);
    if (option->type != CONF_SECRET) {
        return own;
    }
    char twin[CONF_PATH_MAX];
    (void)snprintf(twin, sizeof twin, "%.200s_file", key);
    return json_pack("{s:[o, {s:[s]}]}", "oneOf", own, "required", twin);
}

/* What must be there, under the condition of the selector. */
static void schema_add_required(json_t *conditions, const struct conf_option *option,
                                const char *prefix)
{
    if ((option->flags & CONF_REQUIRED) == 0 || option->fallback_note != NULL) {
        return;
    }
    const struct conf_option *selector = selector_of(prefix);
    if (option->applies == NULL || selector == NULL) {
        (void)json_array_append_new(conditions, schema_required(option));
        return;
    }
    json_t *words = schema_words(option->applies);
    json_t *condition = json_pack("{s:{s:o}}", "properties", conf_option_key(selector), words);
    (void)json_array_append_new(
        conditions, json_pack("{s:o, s:o}", "if", condition, "then", schema_required(option)));
}

static json_t *schema_section(const char *prefix)
{
    json_t *properties = json_object();
    json_t *conditions = json_array();
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    for (size_t i = 0; i < count; i++) {
        const struct conf_option *option = &options[i];
        if (!conf_option_under(option, prefix) || (option->flags & CONF_NOT_YET) != 0) {
            continue;
        }
        (void)json_object_set_new(properties, conf_option_key(option), schema_option(option));
        if (option->type == CONF_SECRET) {
            char twin[CONF_PATH_MAX];
            (void)snprintf(twin, sizeof twin, "%.200s_file", conf_option_key(option));
            json_t *file = schema_text(NULL);
            (void)json_object_set_new(file, "description",
                                      json_string("File with the value alone."));
            (void)json_object_set_new(properties, twin, file);
        }
        schema_add_required(conditions, option, prefix);
    }
    json_t *schema = json_pack("{s:s, s:b, s:o}", "type", "object", "additionalProperties", 0,
                               "properties", properties);
    if (json_array_size(conditions) > 0) {
        (void)json_object_set_new(schema, "allOf", conditions);
    } else {
        json_decref(conditions);
    }
    return schema;
}

int conf_print_schema(struct buf *out)
{
    json_t *schema = json_pack("{s:s, s:s}", "$schema",
                               "https://json-schema.org/draft/2020-12/schema", "title",
                               "Configuration of heave");
    json_t *root = schema_section("");
    (void)json_object_update(schema, root);
    json_decref(root);
    return append_json(schema, out);
}

/* ---- Effective values ---- */

struct effective_row {
    char path[CONF_PATH_MAX];
    char *value; /* mem_free */
    char origin[CONF_PATH_MAX];
};
struct effective {
    const struct conf *conf;
    struct effective_row *rows;
    size_t count;
    size_t room;
};

/* redis://user:***@host */
static int append_masked_url(struct buf *out, const char *url)
{
    const char *at = strrchr(url, '@');
    const char *start = strstr(url, "://");
    if (at == NULL || start == NULL || at < start) {
        return buf_append(out, span_of(url));
    }
    size_t scheme = (size_t)(start - url) + 3;
    const char *colon = memchr(url + scheme, ':', (size_t)(at - url) - scheme);
    size_t shown = colon != NULL ? (size_t)(colon - url) : scheme;
    int status = buf_append(out, span_make(url, shown));
    return status == ERR_OK ? buf_printf(out, "%s***%s", colon != NULL ? ":" : "", at) : status;
}

static int append_value(struct buf *out, const struct conf_option *option,
                        const struct conf_node *node)
{
    if (option->type == CONF_SECRET) {
        return buf_append(out, SPAN_LIT("***"));
    }
    if ((option->flags & CONF_HAS_SECRET) != 0) {
        return append_masked_url(out, node->text);
    }
    if (node->kind == CONF_NODE_SCALAR) {
        return buf_append(out, span_of(node->text));
    }
    int status = buf_append_byte(out, '[');
    for (const struct conf_node *at = node->first; at != NULL && status == ERR_OK; at = at->next) {
        status = buf_printf(out, "%s%s", at->text, at->next != NULL ? ", " : "");
    }
    return status == ERR_OK ? buf_append_byte(out, ']') : status;
}

static void origin_text(const struct conf *conf, const struct conf_node *node,
                        char out[CONF_PATH_MAX])
{
    switch (node->origin) {
    case CONF_FROM_FILE:
        (void)snprintf(out, CONF_PATH_MAX, "%.200s:%zu", conf->file, node->line);
        return;
    case CONF_FROM_ENVIRONMENT:
        (void)snprintf(out, CONF_PATH_MAX, "environment %.200s", node->variable);
        return;
    case CONF_FROM_DEFAULT:
        (void)snprintf(out, CONF_PATH_MAX, "default");
        return;
    }
}

static int effective_add(struct effective *all, const struct conf_option *option,
                         const struct conf_node *node, const char *path)
{
    if (all->count == all->room) {
        size_t room = all->room > 0 ? all->room * 2 : 128;
        struct effective_row *rows = mem_realloc_try(all->rows, room * sizeof *rows);
        if (rows == NULL) {
            return ERR_NOMEM;
        }
        all->rows = rows;
        all->room = room;
    }
    struct buf value;
    buf_init(&value, CONF_BYTES_MAX * 2);
    int status = append_value(&value, option, node);
    if (status == ERR_OK) {
        struct effective_row *row = &all->rows[all->count++];
        *row = (struct effective_row){.value = mem_dup(buf_span(&value))};
        (void)snprintf(row->path, sizeof row->path, "%s", path);
        origin_text(all->conf, node, row->origin);
    }
    buf_release(&value);
    return status;
}

static int effective_section(struct effective *all, const struct conf_node *map,
                             const char *pattern, const char *path);

static int effective_entries(struct effective *all, const struct conf_option *option,
                             const struct conf_node *node, const char *path)
{
    char pattern[CONF_PATH_MAX];
    conf_path_join(pattern, option->path, "*");
    size_t index = 0;
    int status = ERR_OK;
    for (const struct conf_node *at = node->first; at != NULL && status == ERR_OK;
         at = at->next, index++) {
        char digits[24];
        char below[CONF_PATH_MAX];
        (void)snprintf(digits, sizeof digits, "%zu", index);
        conf_path_join(below, path, at->key != NULL ? at->key : digits);
        status = effective_section(all, at, pattern, below);
    }
    return status;
}

static int effective_section(struct effective *all, const struct conf_node *map,
                             const char *pattern, const char *path)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    int status = ERR_OK;
    for (size_t i = 0; i < count && status == ERR_OK; i++) {
        const struct conf_node *node = conf_option_under(&options[i], pattern)
                                           ? node_child(map, conf_option_key(&options[i]))
                                           : NULL;
        if (node == NULL) {
            continue;
        }
        char below[CONF_PATH_MAX];
        conf_path_join(below, path, conf_option_key(&options[i]));
        if (options[i].type == CONF_MAP) {
            status = effective_section(all, node, options[i].path, below);
        } else if (options[i].type <= CONF_LIST) {
            status = effective_entries(all, &options[i], node, below);
        } else {
            status = effective_add(all, &options[i], node, below);
        }
    }
    return status;
}

static int effective_text(const struct effective *all, struct buf *out)
{
    int path_width = 6;
    int value_width = 5;
    for (size_t i = 0; i < all->count; i++) {
        int path_len = (int)strlen(all->rows[i].path);
        int value_len = (int)strlen(all->rows[i].value);
        path_width = path_len > path_width ? path_len : path_width;
        value_width = value_len > value_width ? value_len : value_width;
    }
    value_width = value_width > 60 ? 60 : value_width;
    int status = buf_printf(out, "%-*s  %-*s  %s\n", path_width, "OPTION", value_width, "VALUE",
                            "FROM");
    for (size_t i = 0; i < all->count && status == ERR_OK; i++) {
        const struct effective_row *row = &all->rows[i];
        status = buf_printf(out, "%-*s  %-*s  %s\n", path_width, row->path, value_width, row->value,
                            row->origin);
    }
    return status;
}

static int effective_json(const struct effective *all, struct buf *out)
{
    json_t *list = json_array();
    for (size_t i = 0; i < all->count; i++) {
        const struct effective_row *row = &all->rows[i];
        (void)json_array_append_new(
            list, json_pack("{s:o, s:o, s:o}", "option", json_text(row->path), "value",
                            json_text(row->value), "from", json_text(row->origin)));
    }
    return append_json(json_pack("{s:o}", "options", list), out);
}

int conf_print_effective(const struct conf *conf, bool json, struct buf *out)
{
    struct effective all = {.conf = conf};
    int status = effective_section(&all, conf->private_part->root, "", "");
    if (status == ERR_OK) {
        status = json ? effective_json(&all, out) : effective_text(&all, out);
    }
    for (size_t i = 0; i < all.count; i++) {
        mem_free(all.rows[i].value);
    }
    mem_free(all.rows);
    return status;
}
