#include "gateway/conf_tree.h"

#include <ctype.h>
#include <stdio.h>

/* The tree against the option table: unknown keys, what applies, required keys, _file twins, and
 * the defaults of what is not there. Single values are conf_check_value.c's, what only shows
 * between options is conf_convert.c's. */

/* ---- Nearest key ---- */

#define WORD_MAX 48

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t low = a < b ? a : b;
    return low < c ? low : c;
}

/* Edits (insert, delete, change, swap of neighbours) that make `b` of `a`; WORD_MAX for long words.
 */
static size_t edit_distance(const char *a, const char *b)
{
    size_t rows[3][WORD_MAX + 1];
    size_t a_len = strlen(a);
    size_t b_len = strlen(b);
    if (a_len > WORD_MAX || b_len > WORD_MAX) {
        return WORD_MAX;
    }
    for (size_t j = 0; j <= b_len; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= a_len; i++) {
        size_t *now = rows[i % 3];
        const size_t *before = rows[(i - 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t change = tolower((unsigned char)a[i - 1]) == tolower((unsigned char)b[j - 1])
                                ? 0
                                : 1;
            now[j] = smallest(before[j] + 1, now[j - 1] + 1, before[j - 1] + change);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                now[j] = smallest(now[j], rows[(i - 2) % 3][j - 2] + 1, now[j]);
            }
        }
    }
    return rows[a_len % 3][b_len];
}

static bool one_begins_other(const char *a, const char *b)
{
    size_t a_len = strlen(a);
    size_t b_len = strlen(b);
    size_t len = a_len < b_len ? a_len : b_len;
    return len >= 3 && strncmp(a, b, len) == 0;
}

static bool option_applies(const struct conf_option *option, const char *selected)
{
    return option->applies == NULL || selected == NULL ||
           conf_word_in(option->applies, span_of(selected), NULL);
}

const char *check_nearest(const char *wrong, const char *const *known, size_t count)
{
    const char *best = NULL;
    size_t best_distance = strlen(wrong) / 3 + 2;
    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(wrong, known[i]);
        if (distance > 1 && one_begins_other(wrong, known[i])) {
            distance = 1;
        }
        if (distance < best_distance && distance < strlen(wrong)) {
            best = known[i];
            best_distance = distance;
        }
    }
    return best;
}

#define SIBLINGS_MAX 64

/* The known key a wrong one was most likely meant to be; NULL when none is near. */
static const char *nearest_key(const char *pattern, const char *selected, const char *key)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    const char *known[SIBLINGS_MAX];
    size_t known_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (conf_option_under(&options[i], pattern) && option_applies(&options[i], selected)) {
            ASSERT(known_count < SIBLINGS_MAX);
            known[known_count++] = conf_option_key(&options[i]);
        }
    }
    return check_nearest(key, known, known_count);
}

static const char *known_keys(struct conf_loader *loader, const char *pattern, const char *selected)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    const char *text = "";
    for (size_t i = 0; i < count; i++) {
        if (conf_option_under(&options[i], pattern) && option_applies(&options[i], selected)) {
            text = conf_textf(loader, "%s%s%s", text, text[0] != '\0' ? ", " : "one of ",
                              conf_option_key(&options[i]));
        }
    }
    return text;
}

/* ---- Sections ---- */

static void check_node(struct conf_loader *loader, struct conf_node *node, const char *path);

static void key_mistake(struct conf_loader *loader, struct conf_node *child, const char *path,
                        const char *expected, const char *what)
{
    child->is_bad = true;
    conf_mistake_at(loader, child->key_line, child->key_column, path, expected, "%s", what);
}

static void unknown_key(struct conf_loader *loader, struct conf_node *child, const char *pattern,
                        const char *selected, const char *path)
{
    if (loader->report->cut) {
        child->is_bad = true; /* nobody would read it */
        return;
    }
    const char *nearest = nearest_key(pattern, selected, child->key);
    if (nearest != NULL) {
        key_mistake(
            loader, child, path, "",
            conf_textf(loader, "unknown key \"%.80s\", did you mean \"%s\"?", child->key, nearest));
    } else {
        key_mistake(loader, child, path, known_keys(loader, pattern, selected),
                    conf_textf(loader, "unknown key \"%.80s\"", child->key));
    }
}

static void take_twin(struct conf_loader *loader, struct conf_node *map, struct conf_node *twin,
                      const char *path)
{
    const char *key = conf_option_key(twin->option);
    const struct conf_node *own = node_child(map, key);
    if (own != NULL && own != twin) {
        key_mistake(loader, twin, path, "one of them",
                    conf_textf(loader, "%s and %s are both given", key, twin->key));
        return;
    }
    if (!twin->is_bad || twin->kind == CONF_NODE_SCALAR) {
        check_twin_file(loader, twin, path);
    }
    twin->key = key;
}

/* Finds the row of a child and refuses what has none here. */
static void check_key(struct conf_loader *loader, struct conf_node *map, struct conf_node *child,
                      const char *pattern, const char *selected, const char *path)
{
    bool is_twin = false;
    const struct conf_option *option = conf_option_find(pattern, child->key, &is_twin);
    if (option == NULL) {
        unknown_key(loader, child, pattern, selected, path);
        return;
    }
    child->option = option;
    if ((option->flags & CONF_NOT_YET) != 0) {
        key_mistake(loader, child, path, "",
                    conf_textf(loader, "%s is not supported by this version", child->key));
    } else if (!option_applies(option, selected)) {
        key_mistake(loader, child, path,
                    conf_textf(loader, "only with %s", check_words_text(loader, option->applies)),
                    conf_textf(loader, "%s does not apply to %s", child->key, selected));
    } else if (is_twin) {
        take_twin(loader, map, child, path);
    }
}

static void add_fallback(struct conf_loader *loader, struct conf_node *map,
                         const struct conf_option *option)
{
    struct conf_node *node = node_add_text(loader, map, conf_option_key(option), option->fallback,
                                           CONF_FROM_DEFAULT);
    node->option = option;
    if (!conf_type_is_list(option->type)) {
        return;
    }
    node->kind = CONF_NODE_LIST;
    struct span rest = span_of(option->fallback);
    while (rest.len > 0) {
        struct conf_node *item = node_new(loader, CONF_NODE_SCALAR);
        item->text = conf_text(loader, span_trim(span_cut(&rest, ',')));
        item->origin = CONF_FROM_DEFAULT;
        node_append(node, item);
    }
}

/* Adds what the file leaves out, or says that it must not. */
static void check_missing(struct conf_loader *loader, struct conf_node *map, const char *pattern,
                          const char *selected, const char *path)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    for (size_t i = 0; i < count; i++) {
        const struct conf_option *option = &options[i];
        const char *key = conf_option_key(option);
        if (!conf_option_under(option, pattern) || strcmp(key, "*") == 0 ||
            node_child(map, key) != NULL || !option_applies(option, selected) ||
            (option->flags & CONF_NOT_YET) != 0) {
            continue;
        }
        if (option->fallback != NULL) {
            add_fallback(loader, map, option);
        } else if (option->type == CONF_MAP) {
            struct conf_node *node = node_add_text(loader, map, key, "", CONF_FROM_DEFAULT);
            node->option = option;
            node->kind = CONF_NODE_MAP;
        } else if ((option->flags & CONF_REQUIRED) != 0 &&
                   (option->applies == NULL || selected != NULL)) {
            conf_mistake(loader, map, path, conf_type_text(option->type), "%s is missing", key);
        }
    }
}

/* The value of the key that decides which others apply; NULL while it is missing or wrong. */
static const char *selected_value(const struct conf_node *map, const char *pattern)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    for (size_t i = 0; i < count; i++) {
        const struct conf_option *option = &options[i];
        if ((option->flags & CONF_SELECTOR) == 0 || !conf_option_under(option, pattern)) {
            continue;
        }
        const char *text = node_text(map, conf_option_key(option));
        bool is_known = conf_word_in(option->values, span_of(text), NULL) ||
                        (option->values_later != NULL &&
                         conf_word_in(option->values_later, span_of(text), NULL));
        return is_known ? text : NULL;
    }
    return NULL;
}

static void check_map(struct conf_loader *loader, struct conf_node *map, const char *pattern,
                      const char *path)
{
    const char *selected = selected_value(map, pattern);
    char below[CONF_PATH_MAX];
    for (struct conf_node *at = map->first; at != NULL; at = at->next) {
        conf_path_join(below, path, at->key);
        check_key(loader, map, at, pattern, selected, below);
    }
    check_missing(loader, map, pattern, selected, path);
    for (struct conf_node *at = map->first; at != NULL; at = at->next) {
        if (at->option != NULL && !at->is_bad) {
            conf_path_join(below, path, at->key);
            check_node(loader, at, below);
        }
    }
}

static bool name_valid(const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)name[i];
        if (!isalnum(byte) && byte != '-' && byte != '_') {
            return false;
        }
    }
    return len >= 1 && len <= 64;
}

static void too_many(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    size_t own_count = 0;
    for (const struct conf_node *at = node->first; at != NULL; at = at->next) {
        own_count += at->origin != CONF_FROM_DEFAULT ? 1 : 0;
    }
    const char *expected = conf_textf(loader, "at most %d", (int)node->option->max);
    if (own_count < node->count) {
        conf_mistake(loader, node, path, expected,
                     "too many entries: %zu, with the %zu that are always there", node->count,
                     node->count - own_count);
    } else {
        conf_mistake(loader, node, path, expected, "too many entries: %zu", node->count);
    }
}

/* Entries of a CONF_NAMED or CONF_LIST section. */
static void check_entries(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    const struct conf_option *option = node->option;
    char pattern[CONF_PATH_MAX];
    conf_path_join(pattern, option->path, "*");
    if (node->count > (size_t)option->max) {
        too_many(loader, node, path);
        if (option->type == CONF_LIST) {
            node->is_bad = true;
            return;
        }
        /* What refers to one of the names is no mistake because of this. */
    }
    size_t index = 0;
    for (struct conf_node *at = node->first; at != NULL; at = at->next, index++) {
        char digits[24];
        char below[CONF_PATH_MAX];
        (void)snprintf(digits, sizeof digits, "%zu", index);
        conf_path_join(below, path, at->key != NULL ? at->key : digits);
        if (at->key != NULL && !name_valid(at->key)) {
            key_mistake(loader, at, below, "letters, digits, - and _, at most 64",
                        "the name cannot be used");
        }
        if (at->kind != CONF_NODE_MAP && !(node_is_null(at) && at->key != NULL)) {
            at->is_bad = true;
            conf_mistake(loader, at, below, "a section of keys",
                         "a single value or list cannot stand here");
            continue;
        }
        at->kind = CONF_NODE_MAP;
        check_map(loader, at, pattern, below);
    }
}

static void check_section(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    enum conf_node_kind wanted = node->option->type == CONF_LIST ? CONF_NODE_LIST : CONF_NODE_MAP;
    if (node_is_null(node)) {
        node->kind = wanted; /* "clients:" with everything below it commented out */
    }
    if (node->kind != wanted) {
        node->is_bad = true;
        conf_mistake(loader, node, path, conf_type_text(node->option->type),
                     "this cannot stand here");
        return;
    }
    if ((node->option->flags & CONF_REQUIRED) != 0 && node->count == 0) {
        conf_mistake(loader, node, path, "at least one entry", "the list is empty");
    }
    if (node->option->type == CONF_MAP) {
        check_map(loader, node, node->option->path, path);
    } else {
        check_entries(loader, node, path);
    }
}

static void check_node(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (node->option->type <= CONF_LIST) {
        check_section(loader, node, path);
    } else {
        check_value(loader, node, path);
    }
}

void check_tree(struct conf_loader *loader, struct conf_node *root)
{
    check_map(loader, root, "", "");
}
