/* A QEMU plugin that counts the guest's instructions between two marker system calls.

   Rules: counts whole translation blocks where they are executed, inline, so nothing is sampled; a marker is write(2) to a
   descriptor that no process has open, its first argument. One line an interval goes to the file COUNT_INSNS_OUT names.

   Source of the interface: QEMU, include/qemu/qemu-plugin.h (docs/devel/tcg-plugins.rst); the few functions used are
   declared here, so no header is needed. Interface 1 serves QEMU before 9.0, 3 later ones (inline counting on a
   per-processor scoreboard). */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define MARKER_BEGIN 100001
#define MARKER_END 100002

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_info_t;

__attribute__((visibility("default"))) int qemu_plugin_version = INTERFACE;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
enum op { ADD_U64 = 0 };

static FILE *out;
static uint64_t begun;

#if INTERFACE >= 3
struct qemu_plugin_scoreboard;
typedef struct { struct qemu_plugin_scoreboard *score; size_t offset; } u64;
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
uint64_t qemu_plugin_u64_sum(u64);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, enum op, u64, uint64_t);
static u64 count;
static uint64_t total(void) { return qemu_plugin_u64_sum(count); }
static void translated(plugin_id id, struct qemu_plugin_tb *tb) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, ADD_U64, count, qemu_plugin_tb_n_insns(tb));
}
static void prepare(void) { count.score = qemu_plugin_scoreboard_new(sizeof(uint64_t)); }
#else
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum op, void *, uint64_t);
static uint64_t count;
static uint64_t total(void) { return count; }
static void translated(plugin_id id, struct qemu_plugin_tb *tb) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, &count, qemu_plugin_tb_n_insns(tb));
}
static void prepare(void) {}
#endif

static void called(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)vcpu, (void)number, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (a1 == MARKER_BEGIN) begun = total();
    if (a1 == MARKER_END) {
        fprintf(out, "%" PRIu64 "\n", total() - begun);
        fflush(out);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const struct qemu_info_t *info, int argc,
                                                               char **argv) {
    (void)info, (void)argc, (void)argv;
    const char *path = getenv("COUNT_INSNS_OUT");
    out = path ? fopen(path, "w") : NULL;
    if (out == NULL) {
        fprintf(stderr, "count_insns: COUNT_INSNS_OUT names no file that can be written\n");
        return 1;
    }
    prepare();
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
