#include "gateway/policy.h"

#include "gateway/policy_private.h"

#include <arpa/inet.h>
#include <crypt.h>
#include <stdio.h>

/* ---- Networks ---- */

#define ADDRESS_TEXT_MAX 64
#define PATTERN_MAX 320
#define PATTERN_STARS_MAX 4

static bool is_mapped(const unsigned char address[16])
{
    static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return memcmp(address, mapped, sizeof mapped) == 0;
}

/* One address as text, with a scope that is passed over. `out->prefix` becomes the full length. */
static bool address_parse(struct span text, struct policy_network *out)
{
    struct span rest = text;
    struct span bare = span_cut(&rest, '%');
    char room[ADDRESS_TEXT_MAX];
    if (bare.len == 0 || bare.len >= sizeof room) {
        return false;
    }
    memcpy(room, bare.data, bare.len);
    room[bare.len] = '\0';
    struct policy_network parsed = {.prefix = 128};
    if (inet_pton(AF_INET, room, parsed.address) == 1) {
        parsed.is_ipv4 = true;
        parsed.prefix = 32;
    } else if (inet_pton(AF_INET6, room, parsed.address) != 1) {
        return false;
    }
    *out = parsed;
    return true;
}

/* "::ffff:192.0.2.1" and the IPv4 address are the same host. */
static void address_unmap(struct policy_network *address)
{
    if (!address->is_ipv4 && address->prefix >= 96 && is_mapped(address->address)) {
        memmove(address->address, address->address + 12, 4);
        memset(address->address + 4, 0, 12);
        address->prefix = (uint8_t)(address->prefix - 96);
        address->is_ipv4 = true;
    }
}

/* Whether the first `bits` bits are equal. */
static bool bits_equal(const unsigned char *a, const unsigned char *b, size_t bits)
{
    size_t whole = bits / 8;
    if (memcmp(a, b, whole) != 0) {
        return false;
    }
    unsigned mask = bits % 8 != 0 ? 0xffu << (8 - bits % 8) & 0xffu : 0;
    return mask == 0 || ((a[whole] ^ b[whole]) & mask) == 0;
}

int policy_network_parse(const char *text, struct policy_network *out, struct err *err)
{
    struct span prefix = span_of(text);
    struct span address = span_cut(&prefix, '/');
    struct policy_network parsed;
    bool has_prefix = address.len < strlen(text);
    uint64_t bits = 0;
    if (!address_parse(address, &parsed) || span_find(address, '%') < address.len ||
        (has_prefix && span_to_u64(prefix, parsed.prefix, &bits) != ERR_OK)) {
        return err_set(err, ERR_INVAL, "\"%.60s\" is no address or network such as 10.0.0.0/8.",
                       text);
    }
    if (has_prefix) {
        parsed.prefix = (uint8_t)bits;
    }
    unsigned char masked[17] = {0};
    size_t whole = parsed.prefix / 8;
    memcpy(masked, parsed.address, whole);
    if (parsed.prefix % 8 != 0) {
        masked[whole] = (unsigned char)(parsed.address[whole] &
                                        (0xffu << (8 - parsed.prefix % 8) & 0xffu));
    }
    if (memcmp(masked, parsed.address, sizeof parsed.address) != 0) {
        return err_set(err, ERR_INVAL,
                       "\"%.60s\" has address bits beyond its prefix; write the first address of "
                       "the network, or leave the prefix out for a single host.",
                       text);
    }
    address_unmap(&parsed);
    *out = parsed;
    return ERR_OK;
}

static bool network_holds(const struct policy_network *network,
                          const struct policy_network *address)
{
    return network->is_ipv4 == address->is_ipv4 &&
           bits_equal(network->address, address->address, network->prefix);
}

bool policy_network_holds(const struct policy_network *network, const char *address)
{
    struct policy_network parsed;
    if (!address_parse(span_of(address), &parsed)) {
        return false;
    }
    address_unmap(&parsed);
    return network_holds(network, &parsed);
}

/* ---- Senders ---- */

static char fold(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

/* Greedy matching with one point of return: stars never nest, so that the work is at most the
 * product of both lengths, which are bounded. */
static bool glob_matches(struct span pattern, struct span text)
{
    size_t p = 0;
    size_t t = 0;
    size_t star = SIZE_MAX;
    size_t mark = 0;
    while (t < text.len) {
        if (p < pattern.len && pattern.data[p] == '*') {
            star = p++;
            mark = t;
        } else if (p < pattern.len && fold(pattern.data[p]) == fold(text.data[t])) {
            p++;
            t++;
        } else if (star != SIZE_MAX) {
            p = star + 1;
            t = ++mark;
        } else {
            return false;
        }
    }
    while (p < pattern.len && pattern.data[p] == '*') {
        p++;
    }
    return p == pattern.len;
}

static bool pattern_matches(struct span pattern, struct span address)
{
    bool is_domain = span_find(pattern, '@') == pattern.len &&
                     span_find(pattern, '*') == pattern.len;
    if (!is_domain) {
        return glob_matches(pattern, address);
    }
    return address.len > pattern.len && address.data[address.len - pattern.len - 1] == '@' &&
           span_iends(address, pattern);
}

bool policy_sender_allowed(const struct policy_client *client, struct span address)
{
    const struct policy_client_conf *conf = client->conf;
    if (address.len == 0 || conf->from_count == 0) {
        return true;
    }
    if (address.len > PATTERN_MAX) {
        return false;
    }
    for (size_t i = 0; i < conf->from_count; i++) {
        if (pattern_matches(span_of(conf->from[i]), address)) {
            return true;
        }
    }
    return false;
}

static bool pattern_usable(struct span pattern)
{
    size_t stars = 0;
    size_t ats = 0;
    for (size_t i = 0; i < pattern.len; i++) {
        unsigned char c = (unsigned char)pattern.data[i];
        if (c <= ' ' || c == 127) {
            return false;
        }
        stars += c == '*';
        ats += c == '@';
    }
    return pattern.len > 0 && pattern.len <= PATTERN_MAX && stars <= PATTERN_STARS_MAX && ats <= 1;
}

/* ---- The snapshot ---- */

static int check_patterns(const struct policy_client_conf *conf, struct err *err)
{
    for (size_t i = 0; i < conf->from_count; i++) {
        if (!pattern_usable(span_of(conf->from[i]))) {
            return err_set(err, ERR_INVAL,
                           "Client \"%s\": \"%.100s\" is no sender pattern; write an address, "
                           "\"*@contoso.com\" or \"*\".",
                           conf->name, conf->from[i]);
        }
    }
    return ERR_OK;
}

/* crypt(3) takes almost any two characters as the salt of a DES hash, so that a password written
 * where its hash belongs would pass; only the "$" forms are let in, and of those not MD5. */
static int check_hash(const char *client, const char *what, const char *hash, struct err *err)
{
    if (hash == NULL) {
        return ERR_OK;
    }
    int salt = crypt_checksalt(hash);
    bool usable = hash[0] == '$' && salt != CRYPT_SALT_INVALID &&
                  salt != CRYPT_SALT_METHOD_DISABLED &&
                  !span_starts(span_of(hash), SPAN_LIT("$1$"));
    if (!usable || strlen(hash) < 20 || strlen(hash) >= CRYPT_OUTPUT_SIZE) {
        return err_set(err, ERR_INVAL,
                       "Client \"%s\": %s is no crypt(3) hash this system can check; make one with "
                       "heave passwd, mkpasswd, or htpasswd -B.",
                       client, what);
    }
    return ERR_OK;
}

static int check_users(const struct policy_client_conf *clients, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; clients[i].user != NULL && j < i; j++) {
            if (clients[j].user != NULL && strcmp(clients[i].user, clients[j].user) == 0) {
                return err_set(err, ERR_INVAL,
                               "Client \"%s\": user \"%.100s\" is the user of client \"%s\" too.",
                               clients[i].name, clients[i].user, clients[j].name);
            }
        }
    }
    return ERR_OK;
}

static int add_networks(struct policy *policy, size_t index, struct err *err)
{
    const struct policy_client_conf *conf = policy->clients[index].conf;
    for (size_t i = 0; i < conf->network_count; i++) {
        struct policy_block *block = &policy->blocks[policy->block_count];
        struct err cause;
        if (policy_network_parse(conf->networks[i], &block->network, &cause) != ERR_OK) {
            return err_set(err, ERR_INVAL, "Client \"%s\": %s", conf->name, cause.text);
        }
        block->client = index;
        policy->block_count++;
    }
    return ERR_OK;
}

static int add_client(struct policy *policy, size_t index, struct err *err)
{
    const struct policy_client_conf *conf = policy->clients[index].conf;
    int rc = check_patterns(conf, err);
    if (rc == ERR_OK) {
        rc = check_hash(conf->name, "password_hash", conf->password_hash, err);
    }
    if (rc == ERR_OK) {
        rc = check_hash(conf->name, "api_key_hash", conf->api_key_hash, err);
    }
    return rc == ERR_OK ? add_networks(policy, index, err) : rc;
}

int policy_new(const struct policy_client_conf *clients, size_t count, struct policy **out,
               struct err *err)
{
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) {
        blocks += clients[i].network_count;
    }
    struct policy *policy = mem_zero(sizeof *policy);
    atomic_init(&policy->references, 1);
    policy->clients = mem_zero((count > 0 ? count : 1) * sizeof *policy->clients);
    policy->client_count = count;
    policy->blocks = mem_zero((blocks > 0 ? blocks : 1) * sizeof *policy->blocks);
    int rc = check_users(clients, count, err);
    for (size_t i = 0; i < count && rc == ERR_OK; i++) {
        policy->clients[i] = (struct policy_client){.conf = &clients[i], .index = i};
        rc = strcmp(clients[i].name, "network") != 0
                 ? add_client(policy, i, err)
                 : err_set(
                       err, ERR_INVAL,
                       "The client name \"network\" is kept for the networks of SMTP listeners.");
    }
    if (rc != ERR_OK) {
        policy_unref(&policy);
        return rc;
    }
    *out = policy;
    return ERR_OK;
}

struct policy *policy_ref(struct policy *policy)
{
    atomic_fetch_add_explicit(&policy->references, 1, memory_order_relaxed);
    return policy;
}

void policy_unref(struct policy **policy)
{
    struct policy *p = *policy;
    *policy = NULL;
    if (p == NULL) {
        return;
    }
    size_t before = atomic_fetch_sub_explicit(&p->references, 1, memory_order_acq_rel);
    ASSERT(before > 0);
    if (before == 1) {
        mem_free(p->blocks);
        mem_free(p->clients);
        mem_free(p);
    }
}

const struct policy_client *policy_by_network(const struct policy *policy, const char *address)
{
    struct policy_network parsed;
    if (!address_parse(span_of(address), &parsed)) {
        return NULL;
    }
    address_unmap(&parsed);
    const struct policy_block *best = NULL;
    for (size_t i = 0; i < policy->block_count; i++) {
        const struct policy_block *block = &policy->blocks[i];
        if (network_holds(&block->network, &parsed) &&
            (best == NULL || block->network.prefix > best->network.prefix)) {
            best = block;
        }
    }
    return best != NULL ? &policy->clients[best->client] : NULL;
}
