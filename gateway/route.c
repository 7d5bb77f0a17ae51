#include "gateway/route.h"

#include "gateway/base/codec.h"
#include "queue/fields.h"

#include <ctype.h>
#include <idn2.h>
#include <stdlib.h>

/* RFC 1035 2.3.4 bounds a domain; UTS 46 input may be longer in UTF-8, never longer than this. */
#define DOMAIN_BYTES_MAX 1020

static bool domain_matches(struct span pattern, struct span domain)
{
    if (span_starts(pattern, SPAN_LIT("*."))) {
        struct span suffix = span_make(pattern.data + 1, pattern.len - 1);
        return domain.len > suffix.len && span_iends(domain, suffix);
    }
    return span_ieq(pattern, domain);
}

static bool domain_listed(const char *const *patterns, size_t count, struct span domain)
{
    for (size_t i = 0; i < count; i++) {
        if (domain_matches(span_of(patterns[i]), domain)) {
            return true;
        }
    }
    return false;
}

bool route_is_internal(const struct route_conf *conf, struct span address)
{
    return domain_listed(conf->accepted_domains, conf->accepted_count, address_domain(address));
}

static bool lower_ascii_in_place(char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte > 127) {
            return false;
        }
        text[i] = (char)tolower(byte);
    }
    return true;
}

/* The A-label form of a domain with bytes above 127, lower-case (UTS 46, non-transitional). */
static int domain_to_ascii(struct span domain, char **out_ascii)
{
    char text[DOMAIN_BYTES_MAX + 1];
    if (domain.len > DOMAIN_BYTES_MAX) {
        return ERR_INVAL;
    }
    memcpy(text, domain.data, domain.len);
    text[domain.len] = '\0';
    int flags = IDN2_NFC_INPUT | IDN2_NONTRANSITIONAL;
    return idn2_to_ascii_8z(text, out_ascii, flags) == IDN2_OK ? ERR_OK : ERR_INVAL;
}

int route_normalise(struct span address, struct arena *arena, struct span *out)
{
    struct span copy = arena_dup(arena, address);
    if (copy.data == NULL) {
        return ERR_NOMEM;
    }
    struct span domain = address_domain(copy);
    if (domain.len == 0) {
        return ERR_INVAL;
    }
    size_t at = (size_t)(domain.data - copy.data);
    if (lower_ascii_in_place((char *)(uintptr_t)domain.data, domain.len)) {
        *out = copy;
        return ERR_OK;
    }
    char *ascii = NULL;
    int status = domain_to_ascii(address_domain(address), &ascii);
    if (status != ERR_OK) {
        return status;
    }
    size_t ascii_len = strlen(ascii);
    char *joined = arena_alloc(arena, at + ascii_len + 1);
    if (joined == NULL) {
        idn2_free(ascii);
        return ERR_NOMEM;
    }
    memcpy(joined, address.data, at);
    memcpy(joined + at, ascii, ascii_len);
    (void)lower_ascii_in_place(joined + at, ascii_len);
    idn2_free(ascii);
    *out = span_make(joined, at + ascii_len);
    return ERR_OK;
}

/* A set of addresses compared as recipients: open addressing over an arena array of 2^k slots. The
 * seed is random per plan, so that a peer cannot choose addresses that collide. */
struct address_set {
    struct span *slots;
    size_t mask;
    uint64_t seed;
};

static uint64_t address_hash(const struct address_set *set, struct span address)
{
    uint64_t hash = 1469598103934665603ULL ^ set->seed;
    for (size_t i = 0; i < address.len; i++) {
        hash ^= (uint64_t)tolower((unsigned char)address.data[i]);
        hash *= 1099511628211ULL;
        hash ^= hash >> 29;
    }
    return hash;
}

static int address_set_init(struct address_set *set, size_t count, struct arena *arena)
{
    size_t slots = 16;
    while (slots < count * 2) {
        slots *= 2;
    }
    set->slots = arena_alloc(arena, slots * sizeof(struct span));
    set->mask = slots - 1;
    codec_random(&set->seed, sizeof set->seed);
    return set->slots != NULL ? ERR_OK : ERR_NOMEM;
}

/* True when the address was not in the set before. */
static bool address_set_add(struct address_set *set, struct span address)
{
    size_t at = (size_t)address_hash(set, address) & set->mask;
    while (set->slots[at].data != NULL) {
        if (address_same(set->slots[at], address)) {
            return false;
        }
        at = (at + 1) & set->mask;
    }
    set->slots[at] = address;
    return true;
}

bool route_sender_matches(struct span pattern, struct span sender)
{
    if (span_eq(pattern, SPAN_LIT("*"))) {
        return true;
    }
    if (span_starts(pattern, SPAN_LIT("*@"))) {
        struct span domain = span_make(pattern.data + 2, pattern.len - 2);
        return domain_matches(domain, address_domain(sender));
    }
    return address_same(pattern, sender);
}

static bool rule_matches(const struct route_rule *rule, const struct route_request *request,
                         struct span address, bool internal)
{
    if (rule->recipient == ROUTE_INTERNAL && !internal) {
        return false;
    }
    if (rule->recipient == ROUTE_EXTERNAL && internal) {
        return false;
    }
    if (rule->domain_count > 0 &&
        !domain_listed(rule->domains, rule->domain_count, address_domain(address))) {
        return false;
    }
    if (rule->lane != NULL && !span_eq(span_of(rule->lane), request->lane)) {
        return false;
    }
    if (rule->client != NULL && !span_eq(span_of(rule->client), request->client)) {
        return false;
    }
    return rule->sender == NULL || route_sender_matches(span_of(rule->sender), request->sender);
}

/* Why a backend cannot take this recipient; NULL when it can. */
static const char *backend_objection(const struct route_backend *backend, size_t message_bytes,
                                     struct span address, bool internal)
{
    if (backend->internal_only && !internal) {
        return "The only route for this recipient takes internal recipients alone.";
    }
    if (backend->message_bytes > 0 && message_bytes > backend->message_bytes) {
        return "The message is larger than the route for this recipient allows.";
    }
    if (backend->needs_7bit_envelope && codec_has_8bit(address)) {
        return "The route for this recipient cannot carry a non-ASCII address.";
    }
    return NULL;
}

/* The backend for one recipient: first matching rule, first backend of it without an objection. */
static const char *choose_backend(const struct route_conf *conf,
                                  const struct route_request *request, struct span address,
                                  uint32_t *out_backend)
{
    bool internal = route_is_internal(conf, address);
    for (size_t i = 0; i < conf->rule_count; i++) {
        const struct route_rule *rule = &conf->rules[i];
        if (!rule_matches(rule, request, address, internal)) {
            continue;
        }
        const char *objection = "The rule for this recipient names no backend.";
        for (size_t v = 0; v < rule->via_count; v++) {
            objection = backend_objection(&conf->backends[rule->via[v]], request->message_bytes,
                                          address, internal);
            if (objection == NULL) {
                *out_backend = rule->via[v];
                return NULL;
            }
        }
        return objection;
    }
    return "No route matches this recipient.";
}

const char *route_objection(const struct route_conf *conf, const struct route_request *request,
                            struct span address)
{
    uint32_t backend = 0;
    return choose_backend(conf, request, address, &backend);
}

/* Work space of one plan: for each distinct recipient its address and backend. */
struct plan_work {
    struct span *addresses;
    uint32_t *backends;
    size_t count;
    size_t *per_backend; /* recipients of each backend */
};

static int plan_work_init(struct plan_work *work, const struct route_conf *conf, size_t recipients,
                          struct arena *arena)
{
    work->count = 0;
    work->addresses = arena_alloc(arena, (recipients + 1) * sizeof *work->addresses);
    work->backends = arena_alloc(arena, (recipients + 1) * sizeof *work->backends);
    work->per_backend = arena_alloc(arena, (conf->backend_count + 1) * sizeof *work->per_backend);
    bool complete = work->addresses != NULL && work->backends != NULL && work->per_backend != NULL;
    return complete ? ERR_OK : ERR_NOMEM;
}

static void plan_refuse(struct route_plan *plan, struct span address, const char *reason)
{
    plan->refused[plan->refused_count] = (struct route_refused){.address = address,
                                                                .reason = reason};
    plan->refused_count++;
}

/* Normalises, de-duplicates and assigns every recipient. */
static int plan_assign(const struct route_conf *conf, const struct route_request *request,
                       struct arena *arena, struct plan_work *work, struct route_plan *plan)
{
    struct address_set seen;
    int status = address_set_init(&seen, request->recipient_count, arena);
    if (status != ERR_OK) {
        return status;
    }
    for (size_t i = 0; i < request->recipient_count; i++) {
        struct span address;
        status = route_normalise(request->recipients[i], arena, &address);
        if (status == ERR_NOMEM) {
            return status;
        }
        if (status != ERR_OK) {
            plan_refuse(plan, request->recipients[i],
                        "The recipient's domain is not a valid name.");
            continue;
        }
        if (!address_set_add(&seen, address)) {
            continue;
        }
        uint32_t backend = 0;
        const char *reason = choose_backend(conf, request, address, &backend);
        if (reason != NULL) {
            plan_refuse(plan, address, reason);
            continue;
        }
        work->addresses[work->count] = address;
        work->backends[work->count] = backend;
        work->count++;
        work->per_backend[backend]++;
    }
    return ERR_OK;
}

static size_t batches_needed(size_t recipients, size_t limit)
{
    return (recipients + limit - 1) / limit;
}

/* Cuts one backend's recipients into the fewest batches, of even size: 80 by 50 is 40 + 40. */
static int plan_cut(const struct plan_work *work, uint32_t backend, size_t limit,
                    struct arena *arena, struct route_plan *plan)
{
    size_t total = work->per_backend[backend];
    size_t count = batches_needed(total, limit);
    size_t next = 0;
    for (size_t b = 0; b < count; b++) {
        size_t share = total / count + (b < total % count ? 1 : 0);
        struct route_batch *batch = &plan->batches[plan->batch_count];
        batch->backend = backend;
        batch->recipients = arena_alloc(arena, share * sizeof *batch->recipients);
        if (batch->recipients == NULL) {
            return ERR_NOMEM;
        }
        while (batch->recipient_count < share) {
            if (work->backends[next] == backend) {
                batch->recipients[batch->recipient_count++] = work->addresses[next];
            }
            next++;
        }
        plan->batch_count++;
    }
    return ERR_OK;
}

static size_t backend_limit(const struct route_conf *conf, size_t backend)
{
    uint32_t limit = conf->backends[backend].recipients_per_message;
    ASSERT(limit >= 1 && limit <= 50);
    return limit;
}

int route_plan(const struct route_conf *conf, const struct route_request *request,
               struct arena *arena, struct route_plan *out)
{
    struct route_plan plan = {0};
    struct plan_work work;
    int status = plan_work_init(&work, conf, request->recipient_count, arena);
    if (status != ERR_OK) {
        return status;
    }
    plan.refused = arena_alloc(arena, (request->recipient_count + 1) * sizeof *plan.refused);
    if (plan.refused == NULL) {
        return ERR_NOMEM;
    }
    status = plan_assign(conf, request, arena, &work, &plan);
    if (status != ERR_OK) {
        return status;
    }
    size_t batches = 0;
    for (size_t i = 0; i < conf->backend_count; i++) {
        batches += batches_needed(work.per_backend[i], backend_limit(conf, i));
    }
    plan.batches = arena_alloc(arena, (batches + 1) * sizeof *plan.batches);
    if (plan.batches == NULL) {
        return ERR_NOMEM;
    }
    for (size_t i = 0; i < conf->backend_count; i++) {
        status = plan_cut(&work, (uint32_t)i, backend_limit(conf, i), arena, &plan);
        if (status != ERR_OK) {
            return status;
        }
    }
    plan.recipient_count = work.count;
    *out = plan;
    return ERR_OK;
}
