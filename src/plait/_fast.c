/* What would take too long in Python: to lock and unlock what is free, and to note by whom.

   It is optional. Without it shared/lock_calls.py and running.py do the same, several times slower;
   the two can be mixed, as what they write lies at the same places (shared/cells.py). All that is
   not quick is left to methods of shared/locks.py: to wait, to take over, to tell.

   Python looks for signals only between its own instructions: no Ctrl-C comes amid these calls.
   What might wait is not called here, so the GIL is kept. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* The words of a cell behind its mutex, as in shared/cells.py. */
enum { WHO, SINCE, TASK, NEWS };

/* Who kills this process may do so between any two of these writes: they stay in order. */
#define WRITE(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELEASE)

/* What running.py knows of each thread. */
static __thread uint64_t running_task;

static PyObject *set_task(PyObject *module, PyObject *word)
{
    (void)module;
    uint64_t task = PyLong_AsUnsignedLongLong(word);
    if (task == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    running_task = task;
    Py_RETURN_NONE;
}

static PyObject *get_task(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(running_task);
}

/* Counts how often sites were forgotten: what a lock remembers of them means nothing then. */
static uint64_t times_forgotten;

static PyObject *forget_sites(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    times_forgotten++;
    Py_RETURN_NONE;
}

typedef struct {
    PyObject_HEAD
    pthread_mutex_t *mutex; /* NULL until it is bound */
    uint64_t *words;        /* behind the mutex */
    const uint32_t *depth;  /* how often its owner has it; NULL: not recursive */
    uint32_t once;          /* what that is when it was locked once */
    PyObject *sites;        /* dict: a place in the program -> the word WHO */
    PyObject *memory;       /* keeps all of it mapped */
    size_t last_site;       /* the place that was looked up last, */
    uint64_t last_who;      /* what came of it, */
    uint64_t last_forgotten; /* and times_forgotten then */
} LockCalls;

static PyObject *bind(LockCalls *self, PyObject *args)
{
    unsigned long long mutex, words, depth;
    unsigned int once;
    PyObject *sites, *memory;
    if (!PyArg_ParseTuple(args, "KKKIO!O:_bind", &mutex, &words, &depth, &once, &PyDict_Type,
                          &sites, &memory))
        return NULL;
    Py_XSETREF(self->sites, Py_NewRef(sites));
    Py_XSETREF(self->memory, Py_NewRef(memory));
    self->words = (uint64_t *)(uintptr_t)words;
    self->depth = (const uint32_t *)(uintptr_t)depth;
    self->once = once;
    self->mutex = (pthread_mutex_t *)(uintptr_t)mutex;
    Py_RETURN_NONE;
}

static int is_bound(LockCalls *self)
{
    if (self->mutex == NULL)
        PyErr_SetString(PyExc_RuntimeError, "this lock was never set up");
    return self->mutex != NULL;
}

/* Let go of a mutex that was locked in a call which comes to nothing by the error that is set. */
static void let_go(LockCalls *self)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *done = PyObject_CallMethod((PyObject *)self, "_let_go", "O", error);
    if (done == NULL)
        PyErr_WriteUnraisable((PyObject *)self);
    Py_XDECREF(done);
    PyErr_Restore(type, error, traceback);
}

/* Look up, or make, the word WHO for a place in the program. */
static int look_up(LockCalls *self, size_t place, PyFrameObject *frame)
{
    PyObject *key = PyLong_FromSize_t(place);
    if (key == NULL)
        return -1;
    PyObject *site = Py_XNewRef(PyDict_GetItemWithError(self->sites, key));
    if (site == NULL && !PyErr_Occurred())
        site = PyObject_CallMethod((PyObject *)self, "_new_site", "OO", key, frame);
    Py_DECREF(key);
    if (site == NULL)
        return -1;
    uint64_t who = PyLong_AsUnsignedLongLong(site);
    Py_DECREF(site);
    if (who == (uint64_t)-1 && PyErr_Occurred())
        return -1;
    self->last_site = place;
    self->last_who = who;
    self->last_forgotten = times_forgotten;
    return 0;
}

/* Note who has the mutex: the place in the program that called us, the task, and the time. */
static int note(LockCalls *self)
{
    PyFrameObject *frame = PyEval_GetFrame();
    if (frame == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a lock is for Python code: there is no frame");
        return -1;
    }
    PyCodeObject *code = PyFrame_GetCode(frame);
    size_t place = (size_t)code + (size_t)PyFrame_GetLasti(frame);
    Py_DECREF(code);
    if (place != self->last_site || self->last_forgotten != times_forgotten)
        if (look_up(self, place, frame) < 0)
            return -1;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    WRITE(self->words[SINCE], (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    WRITE(self->words[TASK], running_task);
    WRITE(self->words[WHO], self->last_who);
    return 0;
}

/* Wait, or whatever else is to be done where the first try came to this code; 0: to tell news. */
static PyObject *acquire_slowly(LockCalls *self, int code, PyObject *timeout)
{
    PyFrameObject *frame = PyEval_GetFrame();
    return PyObject_CallMethod((PyObject *)self, "_acquire_slowly", "iOO", code,
                               frame == NULL ? Py_None : (PyObject *)frame, timeout);
}

static PyObject *take(LockCalls *self, PyObject *timeout)
{
    int code = pthread_mutex_trylock(self->mutex);
    if (code != 0 || self->words[NEWS])
        return acquire_slowly(self, code, timeout);
    if (note(self) < 0) {
        let_go(self);
        return NULL;
    }
    Py_RETURN_TRUE;
}

static PyObject *forever; /* -1.0 */
static PyObject *at_once; /* 0.0 */

static PyObject *acquire(LockCalls *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *blocking = count > 0 ? args[0] : NULL, *timeout = count > 1 ? args[1] : NULL;
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (!is_bound(self))
        return NULL;
    if (count > 2) {
        PyErr_SetString(PyExc_TypeError, "acquire() takes at most 2 arguments");
        return NULL;
    }
    for (Py_ssize_t at = 0; at < named; at++) {
        PyObject *name = PyTuple_GET_ITEM(names, at), **where;
        if (PyUnicode_CompareWithASCIIString(name, "blocking") == 0)
            where = &blocking;
        else if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0)
            where = &timeout;
        else {
            PyErr_Format(PyExc_TypeError, "acquire() got an unexpected keyword argument %R", name);
            return NULL;
        }
        if (*where != NULL) {
            PyErr_Format(PyExc_TypeError, "acquire() got multiple values for argument %R", name);
            return NULL;
        }
        *where = args[count + at];
    }
    int waits = blocking == NULL ? 1 : PyObject_IsTrue(blocking);
    if (waits < 0)
        return NULL;
    if (timeout != NULL) {
        PyObject *done = PyObject_CallMethod((PyObject *)self, "_check_timeout", "OO",
                                             waits ? Py_True : Py_False, timeout);
        if (done == NULL)
            return NULL;
        Py_DECREF(done);
    }
    return take(self, !waits ? at_once : timeout == NULL ? forever : timeout);
}

static PyObject *enter(LockCalls *self, PyObject *unused)
{
    (void)unused;
    return is_bound(self) ? take(self, forever) : NULL;
}

/* Unlock it: 0, or why not. Who takes it next may be killed before that is noted: no other is to
   be named then. */
static int give(LockCalls *self)
{
    if (self->depth == NULL || *self->depth == self->once)
        WRITE(self->words[WHO], 0);
    return pthread_mutex_unlock(self->mutex);
}

static PyObject *refuse(LockCalls *self)
{
    return PyObject_CallMethod((PyObject *)self, "_refuse", NULL);
}

static PyObject *release(LockCalls *self, PyObject *unused)
{
    (void)unused;
    if (!is_bound(self))
        return NULL;
    if (give(self) != 0)
        return refuse(self);
    Py_RETURN_NONE;
}

static PyObject *leave(LockCalls *self, PyObject *const *args, Py_ssize_t count)
{
    if (!is_bound(self))
        return NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "__exit__() takes 3 arguments");
        return NULL;
    }
    if (give(self) != 0 && args[1] == Py_None) /* an error that is on its way tells more */
        return refuse(self);
    Py_RETURN_NONE;
}

static int traverse(LockCalls *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->sites);
    Py_VISIT(self->memory);
    return 0;
}

static int clear(LockCalls *self)
{
    self->mutex = NULL;
    Py_CLEAR(self->sites);
    Py_CLEAR(self->memory);
    return 0;
}

static void dealloc(LockCalls *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    {"_bind", (PyCFunction)bind, METH_VARARGS,
     "_bind(mutex, words, depth, once, sites, memory)\n--\n\n"
     "Have it be for a mutex, given by addresses."},
    {"acquire", (PyCFunction)(void (*)(void))acquire, METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, blocking=True, timeout=-1.0)\n--\n\n"
     "Acquire the lock; False if it is not to be had (in ``timeout`` seconds).\n\n"
     "Args:\n"
     "    blocking: whether to wait for it.\n"
     "    timeout: in seconds; -1: for ever."},
    {"release", (PyCFunction)release, METH_NOARGS,
     "release($self)\n--\n\n"
     "Release it. Raises RuntimeError where the calling thread does not have it."},
    {"__enter__", (PyCFunction)enter, METH_NOARGS, "__enter__($self)\n--\n\nAcquire the lock."},
    {"__exit__", (PyCFunction)(void (*)(void))leave, METH_FASTCALL,
     "__exit__($self, kind, error, traceback)\n--\n\nRelease it."},
    {NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_doc, "Locking and unlocking, the quick part: see shared/lock_calls.py."},
    {Py_tp_methods, lock_methods},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, dealloc},
    {0},
};

static PyType_Spec lock_spec = {
    .name = "plait._fast.LockCalls",
    .basicsize = sizeof(LockCalls),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = lock_slots,
};

static int fill(PyObject *module)
{
    forever = PyFloat_FromDouble(-1.0);
    at_once = PyFloat_FromDouble(0.0);
    PyObject *type = PyType_FromSpec(&lock_spec);
    if (forever == NULL || at_once == NULL || type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "LockCalls", type);
    Py_DECREF(type);
    return failed;
}

static PyMethodDef functions[] = {
    {"forget_sites", forget_sites, METH_NOARGS,
     "forget_sites()\n--\n\nHave all locks look up anew who stands where."},
    {"set_task", set_task, METH_O,
     "set_task(word, /)\n--\n\nNote which task the calling thread runs."},
    {"get_task", get_task, METH_NOARGS,
     "get_task()\n--\n\nReturn which task the calling thread runs."},
    {NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "plait._fast",
    .m_doc = "What would take too long in Python; optional.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__fast(void)
{
    return PyModuleDef_Init(&definition);
}
