"""python -m rlhf.chat"""

from rlhf.chat.session import main

if __name__ == "__main__":
    main()
